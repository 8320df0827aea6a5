"""LoRA adapters as ingredients, and adapters extracted from fine-tuned checkpoints."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from soupkit.checkpoint.checkpoint import Checkpoint
from soupkit.checkpoint.hashing import content_hash
from soupkit.checkpoint.source import read_chunk
from soupkit.checkpoint.tensors import write_tensors
from soupkit.checkpoint.views.adapted import Adapted, base_mismatch, open_adapter
from soupkit.checkpoint.views.adapter_config import base_of
from soupkit.cli.app import run_command_line
from soupkit.errors import CheckpointError, CompatibilityError
from soupkit.manifest import Manifest
from soupkit.merge.families.low_rank import EXACT, low_rank

Save = Callable[..., Path]
Tensors = dict[str, np.ndarray]
SHAPES = {
    "embed.weight": (30, 16), "layers.0.q.weight": (16, 16), "layers.1.q.weight": (24, 16), "conv.weight": (6,
    4, 3, 3),
    "norm.weight": (16,),
}  # fmt: skip


def call(*words: Any) -> int:
    return run_command_line([str(word) for word in words])


def base_tensors(dtype: Any = np.float32) -> Tensors:
    rng = np.random.default_rng(0)
    return {name: rng.normal(size=shape).astype(dtype) for name, shape in SHAPES.items()}


@pytest.fixture
def base(save: Save) -> Path:
    path = save("base", base_tensors())
    (path / "config.json").write_text('{"architectures": ["Net"], "num_hidden_layers": 2}')
    return path


def factors(rng: np.random.Generator, shape: tuple[int, ...], rank: int) -> tuple[np.ndarray, np.ndarray]:
    """lora_A and lora_B as PEFT shapes them."""
    if len(shape) == 4:
        return rng.normal(size=(rank, *shape[1:])), rng.normal(size=(shape[0], rank, 1, 1))
    return rng.normal(size=(rank, shape[1])), rng.normal(size=(shape[0], rank))


def write_adapter(
    folder: Path, modules: dict[str, int], *, more: Tensors | None = None, **config: Any
) -> Tensors:
    """An adapter of ranks {module: rank}; returns the changes B·A without any scale."""
    rng = np.random.default_rng(len(modules))
    folder.mkdir()
    tensors, changes = dict(more or {}), {}
    for module, rank in modules.items():
        shape = SHAPES[f"{module}.weight"]
        a, b = (value.astype(np.float32) for value in factors(rng, shape, rank))
        names = (
            ("lora_embedding_A", "lora_embedding_B")
            if module == "embed"
            else ("lora_A.weight", "lora_B.weight")
        )
        if module == "embed":
            a, b = b.T.copy(), a.T.copy()  # PEFT embeds with (lora_B @ lora_A).T
        tensors |= {f"base_model.model.{module}.{name}": value for name, value in zip(names, (a, b))}
        product = b.reshape(len(b), -1).astype(np.float64) @ a.reshape(len(a), -1).astype(np.float64)
        changes[f"{module}.weight"] = (product.T if module == "embed" else product).reshape(shape)
    write_tensors(folder, tensors, file_name="adapter_model.safetensors")
    values = {
        "peft_type": "LORA",
        "r": 4,
        "lora_alpha": 8,
        "base_model_name_or_path": "nowhere/base",
        **config,
    }
    (folder / "adapter_config.json").write_text(json.dumps(values))
    return changes


def test_the_change_is_the_product_times_alpha_over_r(base: Path, tmp_path: Path) -> None:
    changes = write_adapter(tmp_path / "lora", {"layers.0.q": 4, "conv": 4, "embed": 4})
    view = Adapted(Checkpoint(base), open_adapter(tmp_path / "lora"))
    for name, value in base_tensors().items():
        expected = value + 2.0 * changes[name] if name in changes else value
        np.testing.assert_allclose(view[name], expected, rtol=1e-6, atol=1e-6, err_msg=name)


@pytest.mark.parametrize(
    ("config", "scales"),
    [
        ({"lora_alpha": 3}, {"layers.0.q": 3 / 4, "layers.1.q": 3 / 4}),
        ({"lora_alpha": 3, "use_rslora": True}, {"layers.0.q": 3 / 2, "layers.1.q": 3 / 2}),
        ({"alpha_pattern": {"layers.1.q": 1}}, {"layers.0.q": 8 / 4, "layers.1.q": 1 / 4}),
        ({"rank_pattern": {"1.q": 16}}, {"layers.0.q": 8 / 4, "layers.1.q": 8 / 16}),
    ],
)
def test_scales_of_the_configuration(
    config: dict[str, Any], scales: dict[str, float], base: Path, tmp_path: Path
) -> None:
    changes = write_adapter(tmp_path / "lora", dict.fromkeys(scales, 4), **config)
    view = Adapted(Checkpoint(base), open_adapter(tmp_path / "lora"))
    for module, scale in scales.items():
        name = f"{module}.weight"
        np.testing.assert_allclose(
            view[name] - base_tensors()[name], scale * changes[name], rtol=1e-4, atol=1e-5
        )


def test_factors_of_transposed_layers(base: Path, tmp_path: Path) -> None:
    """fan_in_fan_out: the weight is stored as inputs × outputs, and the change is (B·A)ᵀ."""
    changes = write_adapter(tmp_path / "lora", {"layers.0.q": 4}, fan_in_fan_out=True)
    name = "layers.0.q.weight"
    view = Adapted(Checkpoint(base), open_adapter(tmp_path / "lora"))
    np.testing.assert_allclose(view[name] - base_tensors()[name], 2 * changes[name].T, rtol=1e-4, atol=1e-5)


def test_modules_to_save_replace_and_base_layers_are_recognized(base: Path, tmp_path: Path) -> None:
    norm, q = np.full(16, 7.0, np.float32), np.ones((16, 16), np.float32)
    more = {
        "base_model.model.norm.modules_to_save.default.weight": norm,
        "base_model.model.layers.0.q.base_layer.weight": q,
    }
    changes = write_adapter(tmp_path / "lora", {"layers.0.q": 4}, more=more)
    view = Adapted(Checkpoint(base), open_adapter(tmp_path / "lora"))
    np.testing.assert_array_equal(view["norm.weight"], norm)
    np.testing.assert_allclose(
        view["layers.0.q.weight"], 1 + 2 * changes["layers.0.q.weight"], rtol=1e-5, atol=1e-5
    )


def test_reads_of_any_part_give_the_same_bits(base: Path, tmp_path: Path) -> None:
    write_adapter(tmp_path / "lora", {"layers.1.q": 4, "conv": 4})
    view = Adapted(Checkpoint(base), open_adapter(tmp_path / "lora"))
    for name in ("layers.1.q.weight", "conv.weight"):
        whole = view[name].reshape(-1)
        for start in range(0, whole.size - 10, 7):
            part = np.empty(10, whole.dtype)
            read_chunk(view, name, start, part)
            np.testing.assert_array_equal(part, whole[start : start + 10])


def test_small_changes_of_a_bfloat16_base_are_not_rounded_away(save: Save, tmp_path: Path) -> None:
    """Two adapters whose changes are each below bfloat16's resolution add up to one that is not."""
    tensors = {"layers.0.q.weight": np.ones((16, 16)).astype(ml_dtypes.bfloat16)}
    base = save("narrow", tensors)
    for name in ("one", "two"):
        write_tensors(
            _folder(tmp_path / name),
            {
                "base_model.model.layers.0.q.lora_A.weight": np.ones((1, 16), np.float32),
                "base_model.model.layers.0.q.lora_B.weight": np.full((16, 1), 3 * 2.0**-10, np.float32),
            },
            file_name="adapter_model.safetensors",
        )
        (tmp_path / name / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 1, "lora_alpha": 1}')
    refs = [tmp_path / "one", tmp_path / "two"]
    assert call("merge", "task-arithmetic", *refs, "--base", base, "--out", tmp_path / "out", "--quiet") == 0
    written = Checkpoint(tmp_path / "out")
    assert written.slots["layers.0.q.weight"].dtype == "BF16"
    assert set(written["layers.0.q.weight"].astype(float).reshape(-1)) == {1.0 + 2.0**-7}


def _folder(path: Path) -> Path:
    path.mkdir()
    return path


def test_products_are_averaged_and_never_factors(base: Path, tmp_path: Path) -> None:
    one = write_adapter(tmp_path / "one", {"layers.0.q": 4})
    two = write_adapter(tmp_path / "two", {"layers.0.q": 4, "conv": 4})
    refs = [tmp_path / "one", tmp_path / "two"]
    out = tmp_path / "out"
    assert (
        call("merge", "task-arithmetic", *refs, "--base", base, "--weight", 0.5, "--out", out, "--quiet") == 0
    )
    name = "layers.0.q.weight"
    expected = base_tensors()[name] + one[name] + two[name]  # ½ · (8 / 4) each
    np.testing.assert_allclose(Checkpoint(out)[name], expected, rtol=1e-5, atol=1e-5)
    assert json.loads((out / "config.json").read_text())["architectures"] == ["Net"]


def test_adapters_are_recorded_verified_and_reproduced(base: Path, tmp_path: Path) -> None:
    write_adapter(tmp_path / "lora", {"layers.0.q": 4, "conv": 4})
    out = tmp_path / "out"
    assert (
        call("merge", "ties", tmp_path / "lora", "--base", base, "--density", 0.5, "--out", out, "--quiet")
        == 0
    )
    weights = tmp_path / "lora" / "adapter_model.safetensors"
    assert Manifest.read(out).inputs[0]["content"] == content_hash(Checkpoint(weights))
    assert call("verify", out, "--inputs", "--quiet") == 0
    assert call("reproduce", out, "--out", tmp_path / "again", "--quiet") == 0
    weights.write_bytes(weights.read_bytes()[:-4] + bytes(4))
    assert call("verify", out, "--inputs", "--quiet") == 1


def test_without_a_base_the_adapter_names_its_own(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = write_adapter(tmp_path / "lora", {"layers.0.q": 4}, base_model_name_or_path=str(base))
    assert (
        call("merge", "slerp", base, tmp_path / "lora", "--t", 1, "--out", tmp_path / "out", "--quiet") == 0
    )
    name = "layers.0.q.weight"
    np.testing.assert_allclose(
        Checkpoint(tmp_path / "out")[name], base_tensors()[name] + 2 * changes[name], rtol=1e-5, atol=1e-5
    )
    write_adapter(tmp_path / "lost", {"layers.0.q": 4}, base_model_name_or_path=str(tmp_path / "gone"))
    assert call("merge", "karcher", base, tmp_path / "lost", "--out", tmp_path / "no", "--quiet") == 1
    assert "give the base that it was trained on" in capsys.readouterr().err


@pytest.mark.parametrize("config", [{"peft_type": "LOHA"}, {"peft_type": None}])
def test_adapters_that_are_no_lora_are_refused(config: dict[str, Any], tmp_path: Path) -> None:
    write_adapter(tmp_path / "lora", {"layers.0.q": 4}, **config)
    with pytest.raises(CheckpointError, match="soupkit merges LoRA"):
        open_adapter(tmp_path / "lora")


def test_an_adapter_of_another_model_is_refused(save: Save, tmp_path: Path) -> None:
    write_adapter(tmp_path / "lora", {"layers.1.q": 4})
    smaller = Checkpoint(save("smaller", {"layers.1.q.weight": np.zeros((8, 16), np.float32)}))
    with pytest.raises(
        CompatibilityError, match=r"'layers.1.q.weight' as \[24, 16\], the base has \[8, 16\]"
    ):
        Adapted(smaller, open_adapter(tmp_path / "lora"))
    other = Checkpoint(save("other", {"w": np.zeros(3, np.float32)}))
    with pytest.raises(CompatibilityError, match=r"which .*other does not have"):
        Adapted(other, open_adapter(tmp_path / "lora"))


UNMERGEABLE: dict[str, tuple[dict[str, Any], str, str]] = {
    "pissa": ({"init_lora_weights": "pissa"}, "began as pissa", "path_initial_model_for_weight_conversion"),
    "pissa, fast": ({"init_lora_weights": "pissa_niter_4"}, "began as pissa_niter_4", "plain LoRA"),
    "olora": ({"init_lora_weights": "olora"}, "began as olora", "plain LoRA"),
    "corda": ({"init_lora_weights": "corda"}, "began as corda", "plain LoRA"),
    "loftq": ({"init_lora_weights": "loftq"}, "began as loftq", "plain LoRA"),
    "unheard of": ({"init_lora_weights": "foo"}, "'foo', and soupkit does not know", "merge_and_unload"),
    "experts": ({"target_parameters": ["mlp.experts.gate_up_proj"]}, "fused experts", "merge_and_unload"),
    "tokens": ({"trainable_token_indices": [1]}, "single rows of an embedding", "merge_and_unload"),
    "copies": ({"layer_replication": [[0, 1], [0, 1]]}, "copied layers", "merge_and_unload"),
    "activated": ({"alora_invocation_tokens": [1]}, "only after certain tokens", "cannot be merged"),
    "columns": ({"use_dora": True}, "use_dora scales", "merge_and_unload"),
    "quantized": ({"use_qalora": True}, "use_qalora groups", "merge_and_unload"),
    "a later idea": (
        {"use_new_idea": True},
        "use_new_idea may change what its factors mean",
        "merge_and_unload",
    ),
    "prompts": ({"peft_type": "PROMPT_TUNING"}, "of type PROMPT_TUNING", "inputs, not weights"),
    "another type": ({"peft_type": "IA3"}, "of type IA3", "merge_and_unload"),
}


@pytest.mark.parametrize("name", UNMERGEABLE)
def test_what_cannot_be_merged_exactly_is_refused_with_the_reason(
    name: str, base: Path, tmp_path: Path
) -> None:
    config, message, hint = UNMERGEABLE[name]
    write_adapter(tmp_path / "lora", {"layers.0.q": 4}, **config)
    with pytest.raises(CheckpointError, match=message) as error:
        open_adapter(tmp_path / "lora")
    assert hint in str(error.value)
    assert call("merge", "task-arithmetic", tmp_path / "lora", "--base", base, "--out", tmp_path / "out") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("beginning", [True, False, "gaussian", "eva", "orthogonal", None])
def test_beginnings_that_leave_the_base_alone(beginning: Any, base: Path, tmp_path: Path) -> None:
    changes = write_adapter(
        tmp_path / "lora", {"layers.0.q": 4}, init_lora_weights=beginning, exclude_modules=["x"]
    )
    view = Adapted(Checkpoint(base), open_adapter(tmp_path / "lora"))
    name = "layers.0.q.weight"
    np.testing.assert_allclose(view[name] - base_tensors()[name], 2 * changes[name], rtol=1e-4, atol=1e-5)


def test_factors_may_have_a_bias_of_their_own(save: Save, tmp_path: Path) -> None:
    """lora_bias: PEFT adds alpha / r times the bias of lora_B to the layer's."""
    base = Checkpoint(save("biased", base_tensors() | {"layers.0.q.bias": np.ones(16, np.float32)}))
    more = {"base_model.model.layers.0.q.lora_B.bias": np.arange(16, dtype=np.float32)}
    write_adapter(tmp_path / "lora", {"layers.0.q": 4}, more=more, lora_bias=True)
    view = Adapted(base, open_adapter(tmp_path / "lora"))
    np.testing.assert_allclose(view["layers.0.q.bias"], 1 + 2 * np.arange(16))
    part = np.empty(3, np.float32)
    read_chunk(view, "layers.0.q.bias", 5, part)
    np.testing.assert_allclose(part, [11, 13, 15])
    write_adapter(tmp_path / "alone", {}, more=more)
    with pytest.raises(CheckpointError, match="has no factors beside it"):
        open_adapter(tmp_path / "alone")


@pytest.mark.parametrize(
    "name", ["q.lora_magnitude_vector", "q.token_adapter.trainable_tokens_delta", "q.ia3_l"]
)
def test_tensors_that_are_no_factors_are_never_weights(name: str, tmp_path: Path) -> None:
    write_adapter(
        tmp_path / "lora",
        {"layers.0.q": 4},
        more={f"base_model.model.layers.0.{name}": np.ones(2, np.float32)},
    )
    with pytest.raises(CheckpointError, match="no factor of a plain LoRA"):
        open_adapter(tmp_path / "lora")


TIED = {"architectures": ["LlamaForCausalLM"], "tie_word_embeddings": True}


@pytest.mark.parametrize(
    ("config", "module", "metadata"),
    [
        (TIED, "lm_head", {}),
        (TIED, "model.embed_tokens", {}),
        ({"text_config": TIED, "architectures": ["XForConditionalGeneration"]}, "lm_head", {}),
        ({}, "lm_head", {"lm_head.weight": "model.embed_tokens.weight"}),
        ({}, "model.embed_tokens", {"lm_head.weight": "model.embed_tokens.weight"}),
    ],
)
@pytest.mark.parametrize("saved_whole", [False, True])
def test_one_of_two_tied_tensors_cannot_change(
    saved_whole: bool,
    config: dict[str, Any],
    module: str,
    metadata: dict[str, str],
    save: Save,
    tmp_path: Path,
) -> None:
    path = save("tied", {"model.embed_tokens.weight": np.ones((4, 3), np.float32)}, metadata=metadata)
    (path / "config.json").write_text(json.dumps(config))
    prefix = f"base_model.model.{module}"
    tensors = {f"{prefix}.lora_A.weight": np.ones((1, 3)), f"{prefix}.lora_B.weight": np.ones((4, 1))}
    if saved_whole:
        tensors = {f"{prefix}.weight": np.ones((4, 3))}
    write_adapter(
        tmp_path / "lora", {}, more={name: value.astype(np.float32) for name, value in tensors.items()}
    )
    with pytest.raises(CompatibilityError, match="ties to another tensor") as error:
        Adapted(Checkpoint(path), open_adapter(tmp_path / "lora"))
    assert "untie" in str(error.value.hint)


def test_untied_heads_may_change(save: Save, tmp_path: Path) -> None:
    ones = np.ones((4, 3), np.float32)
    path = save("untied", {"model.embed_tokens.weight": ones, "lm_head.weight": ones + 1})
    (path / "config.json").write_text(json.dumps(TIED | {"tie_word_embeddings": False}))
    write_adapter(tmp_path / "lora", {}, more={"base_model.model.lm_head.weight": ones + 4})
    view = Adapted(Checkpoint(path), open_adapter(tmp_path / "lora"))
    np.testing.assert_array_equal(view["lm_head.weight"], ones + 4)


def test_another_base_than_the_adapter_names_is_told(
    base: Path, save: Save, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_adapter(tmp_path / "lora", {"layers.0.q": 4}, base_model_name_or_path=str(base))
    other = save("other", base_tensors())
    (other / "config.json").write_text((base / "config.json").read_text())
    assert base_mismatch(open_adapter(tmp_path / "lora"), Checkpoint(base)) is None
    assert base_mismatch(open_adapter(tmp_path / "lora"), Checkpoint(base / "model.safetensors")) is None
    assert (
        call("merge", "task-arithmetic", tmp_path / "lora", "--base", other, "--out", tmp_path / "out") == 0
    )
    assert f"names {base} as its base, and is merged into {other}" in capsys.readouterr().err


def test_the_hint_names_no_base_that_was_given(base: Path, tmp_path: Path) -> None:
    write_adapter(tmp_path / "lora", {}, more={"base_model.model.ghost.weight": np.ones(2, np.float32)},
                  base_model_name_or_path=str(base))  # fmt: skip
    with pytest.raises(CompatibilityError, match="does not have") as error:
        Adapted(Checkpoint(base), open_adapter(tmp_path / "lora"))
    assert "other names or fused" in str(error.value.hint)


def test_the_revision_of_a_base_on_the_hub_counts() -> None:
    assert base_of({"base_model_name_or_path": "org/name", "revision": "v2"}) == "org/name@v2"
    assert base_of({"base_model_name_or_path": "org/name", "revision": None}) == "org/name"
    assert base_of({"base_model_name_or_path": "org/name", "revision": "main"}) == "org/name"


# Extraction.


def test_low_rank_is_the_best_approximation() -> None:
    rng = np.random.default_rng(0)
    matrix = rng.normal(size=(40, 30))
    sizes = np.linalg.svd(matrix, compute_uv=False)
    found = low_rank(matrix, 5)
    assert found.error == pytest.approx(math.sqrt(np.sum(sizes[5:] ** 2) / np.sum(sizes**2)))
    assert np.linalg.norm(matrix - found.b @ found.a) / np.linalg.norm(matrix) == pytest.approx(found.error)
    assert low_rank(matrix, 35).error == pytest.approx(0, abs=1e-7)
    assert low_rank(matrix, 35).b.shape == (40, 35)


def test_large_matrices_are_decomposed_by_sampling() -> None:
    rng = np.random.default_rng(0)
    side = EXACT + 76
    matrix = rng.normal(size=(side, 8)) @ rng.normal(size=(8, side)) + 0.01 * rng.normal(size=(side, side))
    best = np.linalg.svd(matrix, compute_uv=False)
    optimum = math.sqrt(np.sum(best[8:] ** 2) / np.sum(best**2))
    found = low_rank(matrix, 8)
    assert found.error < 1.02 * optimum
    np.testing.assert_array_equal(found.a, low_rank(matrix, 8).a)


def test_integers_that_changed_are_named(
    save: Save, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tuned, base = (
        save(name, {"l.weight": np.full((4, 4), k, np.float32), "ids": np.full((2, 2), k)})
        for k, name in ((1, "a"), (0, "b"))
    )
    assert call("extract-lora", tuned, "--base", base, "--rank", 1, "--out", tmp_path / "out") == 0
    assert Manifest.read(tmp_path / "out").notes["dropped"] == ["ids"]
    assert "1 changed tensors are left out, for example ids" in " ".join(capsys.readouterr().err.split())


def test_extracting_what_an_adapter_did_gives_it_back(base: Path, tmp_path: Path) -> None:
    write_adapter(tmp_path / "lora", {"layers.0.q": 3, "layers.1.q": 2})
    tuned, extracted, again = tmp_path / "tuned", tmp_path / "extracted", tmp_path / "again"
    assert call("merge", "task-arithmetic", tmp_path / "lora", "--base", base, "--out", tuned, "--quiet") == 0
    assert call("extract-lora", tuned, "--base", base, "--rank", 3, "--out", extracted, "--quiet") == 0
    assert call("merge", "task-arithmetic", extracted, "--base", base, "--out", again, "--quiet") == 0
    for name in SHAPES:
        np.testing.assert_allclose(Checkpoint(again)[name], Checkpoint(tuned)[name], rtol=1e-5, atol=1e-5)
    manifest = Manifest.read(extracted)
    assert manifest.notes["relative_error"] < 1e-6
    assert manifest.notes["dropped"] == []
    assert call("verify", extracted, "--quiet") == 0
    config = json.loads((extracted / "adapter_config.json").read_text())
    assert config["target_modules"] == ["layers.0.q", "layers.1.q"]
    assert config["r"] == config["lora_alpha"] == 3


def test_what_is_no_matrix_is_dropped_aloud_or_saved(
    base: Path, save: Save, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tensors = base_tensors()
    tensors["norm.weight"] = tensors["norm.weight"] + 1
    tensors["layers.0.q.weight"] = tensors["layers.0.q.weight"] + 0.5
    tuned = save("tuned", tensors)
    (tuned / "config.json").write_text((base / "config.json").read_text())
    assert call("extract-lora", tuned, "--base", base, "--rank", 1, "--out", tmp_path / "dropped") == 0
    assert "1 changed tensors are left out, for example norm.weight" in capsys.readouterr().err
    options = ["--rank", 1, "--others", "save", "--out", tmp_path / "saved", "--quiet"]
    assert call("extract-lora", tuned, "--base", base, *options) == 0
    again = tmp_path / "again"
    assert (
        call("merge", "task-arithmetic", tmp_path / "saved", "--base", base, "--out", again, "--quiet") == 0
    )
    for name, value in tensors.items():
        np.testing.assert_allclose(Checkpoint(again)[name], value, rtol=1e-5, atol=1e-5)
