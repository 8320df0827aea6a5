"""`soupkit env`: what a bug report needs, and nothing that is nobody's business."""

import json

import pytest

from soupkit.cli.app import run_command_line


def test_env(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("HTTPS_PROXY", "http://user:password@proxy:3128")
    monkeypatch.setenv("HF_ENDPOINT", "https://example.org")
    assert run_command_line(["env", "--json"]) == 0
    text = capsys.readouterr().out
    found = json.loads(text)
    assert found["packages"]["torch"]
    assert found["packages"]["huggingface_hub"]
    assert found["devices"][0].startswith("cpu (")
    assert found["variables"]["HTTPS_PROXY"] == "set"
    assert found["variables"]["HF_ENDPOINT"] == "https://example.org"
    assert set(found["cache"]) == {"scores", "Hub"}
    assert "secret" not in text
    assert "password" not in text
    assert run_command_line(["env"]) == 0
    assert "packages: torch" in capsys.readouterr().out


def test_a_torch_that_cannot_be_imported_is_what_it_tells(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    assert run_command_line(["env", "--json"]) == 0
    assert "torch cannot be imported: " in json.loads(capsys.readouterr().out)["devices"][0]
