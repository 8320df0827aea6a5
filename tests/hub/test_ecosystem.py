"""Outputs are loaded by the libraries that they are for, from disk and from the Hub, and compute the same."""

import json
from pathlib import Path
from typing import Any

import soupkit.task.torchvision_ops  # noqa: F401  (before timm and open_clip)

# isort: split
import open_clip
import pytest
import timm
import torch
from hub.server import TOKEN, Hub
from safetensors import safe_open
from safetensors.torch import load_file
from task.small import CLIP_CONFIG

from soupkit.cli.app import run_command_line

IMAGES = torch.rand(2, 3, 160, 160, generator=torch.Generator().manual_seed(0))
TIMM = "test_resnet"


def soupkit_(*arguments: object) -> None:
    assert run_command_line([*map(str, arguments), "--quiet"]) == 0


def mean_of(models: list[torch.nn.Module]) -> dict[str, torch.Tensor]:
    """The reference: torch's own mean, in float64, of everything that is a float."""
    states = [model.state_dict() for model in models]
    return {
        name: torch.stack([state[name].double() for state in states]).mean(0).to(first.dtype)
        if first.is_floating_point()
        else torch.stack([state[name] for state in states]).amax(0)
        for name, first in states[0].items()
    }


def assert_close(a: torch.Tensor, b: torch.Tensor) -> None:
    assert a.shape == b.shape
    torch.testing.assert_close(a, b, rtol=0, atol=0)


@pytest.fixture(scope="module")
def timm_models() -> list[torch.nn.Module]:
    made = []
    for seed in range(2):
        torch.manual_seed(seed)
        model = timm.create_model(TIMM, num_classes=7)
        model.train()(IMAGES)  # so that batch-norm statistics are not trivial
        made.append(model.eval())
    return made


@pytest.fixture
def timm_soup(timm_models: list[torch.nn.Module], tmp_path: Path) -> Path:
    """Two training checkpoints of timm's own train.py, converted and averaged."""
    for seed, model in enumerate(timm_models):
        value = {"epoch": 3, "arch": TIMM, "state_dict": model.state_dict(), "optimizer": {}, "version": 2}
        torch.save(value, tmp_path / f"run-{seed}.pth.tar")
    soupkit_(
        "convert", tmp_path / "*.pth.tar", "--model", f"timm:{TIMM},num_classes=7", "--out", tmp_path / "runs"
    )
    soupkit_("merge", "uniform", tmp_path / "runs", "--out", tmp_path / "soup")
    return tmp_path / "soup"


def test_converted_files_in_timm(timm_models: list[torch.nn.Module], timm_soup: Path, tmp_path: Path) -> None:
    for seed, model in enumerate(timm_models):
        loaded = timm.create_model(f"local-dir:{tmp_path}/runs/run-{seed}", pretrained=True).eval()
        assert_close(loaded(IMAGES), model(IMAGES))


def test_soups_in_timm_from_disk_and_from_the_hub(
    hub: Hub, timm_models: list[torch.nn.Module], timm_soup: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference = timm.create_model(TIMM, num_classes=7).eval()
    reference.load_state_dict(mean_of(timm_models))
    expected = reference(IMAGES)
    assert_close(timm.create_model(f"local-dir:{timm_soup}", pretrained=True).eval()(IMAGES), expected)
    hub.add("org/soup", timm_soup)
    assert_close(timm.create_model("hf-hub:org/soup", pretrained=True).eval()(IMAGES), expected)


@pytest.mark.filterwarnings("ignore:Use 'content=<...>':DeprecationWarning")
def test_a_pushed_soup_in_timm(hub: Hub, timm_soup: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    soupkit_("push", timm_soup, "org/pushed")
    expected = timm.create_model(f"local-dir:{timm_soup}", pretrained=True).eval()(IMAGES)
    assert_close(timm.create_model("hf-hub:org/pushed", pretrained=True).eval()(IMAGES), expected)


def test_the_wrong_model_is_noticed(timm_models: list[torch.nn.Module], tmp_path: Path, capsys: Any) -> None:
    torch.save(timm_models[0].state_dict(), tmp_path / "m.pt")
    for model in ("timm:test_vit", f"timm:{TIMM},num_classes=9", "timm:no_such_model"):
        arguments = [
            "convert",
            str(tmp_path / "m.pt"),
            "--model",
            model,
            "--out",
            str(tmp_path / "out"),
            "--quiet",
        ]
        assert run_command_line(arguments) == 1
        assert "m.pt" in capsys.readouterr().err or model == "timm:no_such_model"
        assert not (tmp_path / "out").exists()


@pytest.fixture
def tiny_clip(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> str:
    """A tiny architecture among those that open_clip knows by name."""
    folder = tmp_path_factory.mktemp("configs")
    (folder / "soupkit-tiny.json").write_text(json.dumps(CLIP_CONFIG["model_cfg"]))
    open_clip.add_model_config(folder)
    return "soupkit-tiny"


def test_open_clip(hub: Hub, tiny_clip: str, tmp_path: Path) -> None:
    """Training checkpoints of open_clip: `module.` before every name, the epoch beside them."""
    models = []
    for seed in range(2):
        torch.manual_seed(seed)
        model = open_clip.create_model(tiny_clip).eval()
        state = {f"module.{name}": tensor for name, tensor in model.state_dict().items()}
        torch.save(
            {"epoch": 1, "name": "x", "state_dict": state, "optimizer": {}}, tmp_path / f"epoch_{seed}.pt"
        )
        models.append(model)
    files = [tmp_path / f"epoch_{seed}.pt" for seed in range(2)]
    soupkit_("convert", *files, "--model", f"open_clip:{tiny_clip}", "--out", tmp_path / "runs")
    soupkit_("merge", "uniform", tmp_path / "runs", "--out", tmp_path / "soup")
    reference = open_clip.create_model(tiny_clip).eval()
    reference.load_state_dict(mean_of(models))
    side = CLIP_CONFIG["model_cfg"]["vision_cfg"]["image_size"]
    images, texts = IMAGES[:, :, :side, :side], torch.randint(1, 40, (2, reference.context_length))
    hub.add("org/clip", tmp_path / "soup")
    for name in (f"local-dir:{tmp_path / 'soup'}", "hf-hub:org/clip"):
        loaded, _, preprocess = open_clip.create_model_and_transforms(name)
        for found, expected in zip(loaded.eval()(images, texts), reference(images, texts), strict=True):
            assert_close(found, expected)
        assert preprocess is not None


def test_the_public_files_of_the_model_soups_paper(tiny_clip: str, tmp_path: Path) -> None:
    """Their layout: CLIP under `model.`, a linear head beside it, nothing around."""
    torch.manual_seed(0)
    model = open_clip.create_model(tiny_clip).eval()
    state = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    torch.save({**state, "classification_head.weight": torch.rand(10, 8)}, tmp_path / "model_0.pt")
    options = ("--drop", "classification_head.", "--strip", "model.", "--model", f"open_clip:{tiny_clip}")
    soupkit_("convert", tmp_path / "model_0.pt", *options, "--out", tmp_path / "clip")
    loaded = open_clip.create_model(f"local-dir:{tmp_path / 'clip'}").eval()
    for name, tensor in model.state_dict().items():
        assert_close(loaded.state_dict()[name], tensor)


@pytest.fixture
def language_models() -> list[Any]:
    transformers = pytest.importorskip("transformers")
    made = []
    for seed in range(2):
        torch.manual_seed(seed)
        config = transformers.GPT2Config(n_layer=2, n_head=2, n_embd=16, vocab_size=50, n_positions=16)
        made.append(transformers.GPT2LMHeadModel(config).eval())
    return made


TOKENS = torch.arange(10).reshape(1, 10)


def test_transformers_with_shards(hub: Hub, language_models: list[Any], tmp_path: Path) -> None:
    """Sharded in, sharded out, tied embeddings, loaded by AutoModel."""
    from transformers import AutoModelForCausalLM, GPT2LMHeadModel

    for seed, model in enumerate(language_models):
        model.save_pretrained(tmp_path / f"run-{seed}", max_shard_size="10KB")
        assert len(list((tmp_path / f"run-{seed}").glob("*.safetensors"))) > 1
        hub.add("org/gpt", tmp_path / f"run-{seed}", tag=f"v{seed}")
    soupkit_("merge", "uniform", tmp_path / "run-[01]", "--out", tmp_path / "soup", "--max-shard-size", "8KB")
    assert (tmp_path / "soup/model.safetensors.index.json").exists()
    reference = GPT2LMHeadModel(language_models[0].config).eval()
    reference.load_state_dict(mean_of(language_models))
    expected = reference(TOKENS).logits
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "soup").eval()
    assert_close(loaded(TOKENS).logits, expected)
    assert loaded.lm_head.weight.data_ptr() == loaded.transformer.wte.weight.data_ptr()
    soupkit_("merge", "uniform", "org/gpt@v{0..1}", "--stream", "--out", tmp_path / "streamed")
    assert_close(AutoModelForCausalLM.from_pretrained(tmp_path / "streamed").eval()(TOKENS).logits, expected)
    hub.add("org/soup", tmp_path / "soup")
    assert_close(AutoModelForCausalLM.from_pretrained("org/soup").eval()(TOKENS).logits, expected)


def test_transformers_pickles(language_models: list[Any], tmp_path: Path) -> None:
    """An old repository: pytorch_model.bin with tied tensors, configuration beside it."""
    from transformers import AutoModelForCausalLM

    model = language_models[0]
    model.config.save_pretrained(tmp_path / "old")
    torch.save(model.state_dict(), tmp_path / "old/pytorch_model.bin")
    soupkit_("convert", tmp_path / "old", "--out", tmp_path / "new")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "new").eval()
    assert_close(loaded(TOKENS).logits, model(TOKENS).logits)
    with safe_open(tmp_path / "new/model.safetensors", "pt") as file:
        assert len(list(file.keys())) == len(model.state_dict()) - 1


def test_safetensors_reads_what_soupkit_writes(timm_soup: Path, timm_models: list[torch.nn.Module]) -> None:
    found = load_file(timm_soup / "model.safetensors")
    expected = mean_of(timm_models)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert_close(found[name], tensor)
