"""Averages in the Trainer of transformers: a callback.

averages = AveragesCallback({"ema": Ema.of_half_life(2000)}, evaluate="ema")
trainer = Trainer(..., callbacks=[averages])
averages.attach(trainer)                              # evaluations are then of the average
trainer.train(resume_from_checkpoint=True)

    OUT/checkpoint-500/                    as ever, with soupkit-averages.pt beside the optimizer's state
    OUT/checkpoint-500/ema/, OUT/ema/      the average, which from_pretrained loads
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Unpack

from torch import nn
from transformers import (
    PreTrainedModel,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from soupkit.errors import TaskError
from soupkit.integrations.averages import DEFAULT, Averages, Options
from soupkit.jsons import JsonView
from soupkit.merge.running import Rule


class AveragesCallback(TrainerCallback):
    """Averages follow every optimizer step, are written beside every checkpoint and at the end, and resume
    exactly.

    rules and options: those of soupkit.integrations.Averages. evaluate: the average that evaluations are of,
    once the trainer is attached; load_best_model_at_end then goes by its scores. resume_from: the folder of
    the checkpoint that training resumes from, where that is not OUT/checkpoint-STEP. Raises TaskError for a
    resumed training whose averages are not there.
    """

    def __init__(
        self,
        rules: Mapping[str, Rule] = DEFAULT,
        *,
        evaluate: str | None = None,
        resume_from: Path | str | None = None,
        **options: Unpack[Options],
    ) -> None:
        if evaluate is not None and evaluate not in rules:
            raise TaskError(f"there is no average {evaluate!r}", hint=f"there are: {', '.join(rules)}")
        self.rules, self.options, self.evaluate = rules, options, evaluate
        self.resume_from = resume_from
        self.averages: Averages | None = None

    def attach(self, trainer: Trainer) -> None:
        """Let the trainer evaluate the average that `evaluate` names; outside of training, its weights."""
        plain, inside = trainer.evaluate, False

        def evaluate(*arguments: object, **options: object) -> object:
            nonlocal inside
            if inside or self.averages is None or self.evaluate is None:  # one call for each of several sets
                return plain(*arguments, **options)
            inside = True
            try:
                with self.averages.swapped(self.evaluate):
                    return plain(*arguments, **options)
            finally:
                inside = False

        trainer.evaluate = evaluate

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Begin, or go on where the checkpoint was."""
        model = kwargs["model"]
        assert isinstance(model, nn.Module)
        self.averages = Averages(model, self.rules, **self.options)
        if state.global_step > 0:
            self.averages.restore(Path(self.resume_from or _checkpoint(args, state)))

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Average, unless a scaler left the step out."""
        if self.averages is not None and not getattr(kwargs.get("optimizer"), "step_was_skipped", False):
            self.averages.update()

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Write state and averages into the checkpoint that was just saved."""
        if self.averages is not None and state.is_world_process_zero:
            self.averages.save(_checkpoint(args, state))
            self._write(_checkpoint(args, state), kwargs)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Write the averages beside the end of the training."""
        if self.averages is not None and state.is_world_process_zero:
            self._write(Path(str(args.output_dir)), kwargs)

    def _write(self, directory: Path, kwargs: JsonView) -> None:
        assert self.averages is not None
        model, processor = kwargs["model"], kwargs.get("processing_class")
        for name in self.averages.ready:
            if isinstance(model, PreTrainedModel):
                model.save_pretrained(directory / name, state_dict=self.averages.averaged(name))
            else:
                self.averages.write(directory / name, name)
            if processor is not None:
                processor.save_pretrained(directory / name)


def _checkpoint(args: TrainingArguments, state: TrainerState) -> Path:
    return Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
