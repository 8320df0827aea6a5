"""The callback in the real Trainer of transformers, and the optimizer that averages."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from soupkit.checkpoint.checkpoint import Checkpoint
from soupkit.cli.app import run_command_line
from soupkit.errors import TaskError
from soupkit.manifest import Manifest
from soupkit.merge.running import Bema, Ema, Swa
from soupkit.train.ema import EMAOptimizer

pytest.importorskip("accelerate")
RULES = {"ema": Ema(0.7), "swa": Swa(start=2), "bema": Bema(every=2)}
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")


def made(out: Path, *callbacks: Any, seed: int = 0, **options: Any) -> Any:
    """A trainer of a tiny BERT on random tokens."""
    from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

    torch.manual_seed(seed)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    model = BertForSequenceClassification(BertConfig(vocab_size=20, max_position_embeddings=8, **sizes))
    draw = torch.Generator().manual_seed(0)
    rows = [
        {"input_ids": torch.randint(0, 20, (6,), generator=draw), "labels": torch.tensor(number % 2)}
        for number in range(16)
    ]
    arguments = {
        "output_dir": str(out),
        "max_steps": 6,
        "save_steps": 3,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
        "logging_steps": 3,
        "seed": 1,
    }
    optimizers = options.pop("optimizers", None)
    return Trainer(
        model=model,
        args=TrainingArguments(**{**arguments, **options}),
        train_dataset=rows,
        eval_dataset=rows[:8],
        callbacks=list(callbacks),
        optimizers=optimizers(model) if optimizers else (None, None),
    )


def states(trainer: Any, callback: Any) -> dict[str, torch.Tensor]:
    found = {
        f"{name}.{key}": tensor for name in RULES for key, tensor in callback.averages.averaged(name).items()
    }
    return {**found, **trainer.model.state_dict()}


def test_interrupted_and_resumed_is_uninterrupted(tmp_path: Path) -> None:
    from transformers import BertForSequenceClassification

    from soupkit.integrations.transformers import AveragesCallback

    whole = AveragesCallback(RULES)
    first = made(tmp_path / "whole", whole)
    first.train()
    again = AveragesCallback(RULES, resume_from=tmp_path / "whole" / "checkpoint-3")
    second = made(tmp_path / "again", again, seed=7)
    second.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3"))
    wanted = states(first, whole)
    for key, tensor in states(second, again).items():
        assert torch.equal(tensor, wanted[key]), key
    for folder in (tmp_path / "again" / "ema", tmp_path / "whole" / "checkpoint-6" / "ema"):
        loaded = BertForSequenceClassification.from_pretrained(folder)
        for key, tensor in whole.averages.averaged("ema").items():
            assert torch.equal(loaded.state_dict()[key], tensor), key
    lost = AveragesCallback(RULES)
    with pytest.raises(TaskError, match="cannot go on"):
        made(tmp_path / "lost", lost).train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3"))


def test_evaluations_are_of_the_average(tmp_path: Path) -> None:
    from soupkit.integrations.transformers import AveragesCallback

    averages = AveragesCallback({"ema": Ema(0.9)}, evaluate="ema")
    trainer = made(tmp_path, averages, eval_strategy="steps", eval_steps=3)
    averages.attach(trainer)
    trainer.train()
    seen = [row["eval_loss"] for row in trainer.state.log_history if "eval_loss" in row]
    with averages.averages.swapped("ema"):
        wanted = trainer.prediction_step(trainer.model, next(iter(trainer.get_eval_dataloader())), True)[0]
    assert seen[-1] == pytest.approx(float(wanted), rel=1e-5)
    raw = trainer.prediction_step(trainer.model, next(iter(trainer.get_eval_dataloader())), True)[0]
    assert seen[-1] != pytest.approx(float(raw), rel=1e-5)
    with pytest.raises(TaskError, match="no average"):
        AveragesCallback({"ema": Ema(0.9)}, evaluate="swa")


def test_the_trainer_takes_the_optimizer_that_averages(tmp_path: Path) -> None:
    def optimizers(wrap: bool) -> Callable[[Any], tuple[Any, Any]]:
        def both(model: Any) -> tuple[Any, Any]:
            inner = torch.optim.AdamW(model.parameters(), lr=1e-2)
            each = EMAOptimizer(inner, model, half_life=4) if wrap else inner
            return each, torch.optim.lr_scheduler.StepLR(each, 2)

        return both

    first = made(tmp_path / "ema", optimizers=optimizers(True))
    first.train()
    plain = made(tmp_path / "plain", optimizers=optimizers(False))
    plain.train()
    for key, tensor in plain.model.state_dict().items():
        assert torch.equal(first.model.state_dict()[key], tensor), key
    again = made(tmp_path / "again", optimizers=optimizers(True), seed=7)
    again.train(resume_from_checkpoint=str(tmp_path / "ema" / "checkpoint-3"))
    average = first.optimizer.optimizer.ema_state_dict()
    for key, tensor in again.optimizer.optimizer.ema_state_dict().items():
        assert torch.equal(tensor, average[key]), key


def test_training_goes_on_from_a_merged_trajectory(tmp_path: Path) -> None:
    """`merge trajectory --optimizer` is a checkpoint that the Trainer resumes from."""
    made(tmp_path / "run", save_steps=2).train()
    out = tmp_path / "merged"
    words = [
        "merge",
        "trajectory",
        str(tmp_path / "run"),
        "--window",
        "2..4",
        "--optimizer",
        "--out",
        str(out),
    ]
    assert run_command_line([*words, "--quiet"]) == 0
    assert Manifest.read(out).notes["steps"] == [2, 4]
    trainer = made(tmp_path / "on", seed=7)
    trainer.train(resume_from_checkpoint=str(out))
    assert trainer.state.global_step == 6
    assert Checkpoint(out)["classifier.bias"].tolist() != trainer.model.classifier.bias.tolist()
