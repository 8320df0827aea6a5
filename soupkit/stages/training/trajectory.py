"""What a training run writes beside its last weights: snapshots of epochs, averages, snapshots for post-hoc
EMA.

    OUT/                            the weights as they were trained
    OUT/ema/, OUT/swa/              an average of them, a checkpoint directory of its own that says so
    OUT/snapshots/epoch-0003/       the weights after an epoch; OUT/snapshots names them all
    OUT/posthoc/sigma-0.1-update-00000120/    power-function EMAs, for `merge posthoc-ema OUT/posthoc`

An average's file says in its own metadata what it is, so that it is known even where it stands alone.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from soupkit.checkpoint.hashing import content_hash
from soupkit.checkpoint.tensors import write_tensors
from soupkit.jsons import Json
from soupkit.manifest import Manifest
from soupkit.merge.running import PowerEma
from soupkit.recipe.parse import recipe_to_json
from soupkit.recipe.train import Finetune
from soupkit.stages.outputs.described import describe_outputs
from soupkit.stages.scoring.scoring import refresh_statistics
from soupkit.task.epochs import num_batches
from soupkit.task.task import Trainee
from soupkit.task.weights import arrays_of_state
from soupkit.train.averaging import Averaging

METADATA_KEY = "soupkit.weights"
MOST_REFRESH_BATCHES = 100
Measure = Callable[[Path], Json]


def num_written(recipe: Finetune) -> int:
    """How many checkpoints a run writes."""
    snapshots = recipe.epochs // recipe.snapshot_every if recipe.snapshot_every else 0
    posthoc = len(recipe.posthoc_sigma) * -(-recipe.epochs // recipe.posthoc_every)
    return 1 + (recipe.ema_decay is not None) + (recipe.swa_start is not None) + snapshots + posthoc


@dataclass
class Trajectory:
    """Writes them into the directory of a run that is under way.

    task: whose model is trained. inputs: the manifest's record of the base, as seen from OUT. chosen: notes
    on what chose among them.
    """

    directory: Path
    task: Trainee
    recipe: Finetune
    averages: Mapping[str, Averaging]
    inputs: list[Json]
    chosen: Json = field(default_factory=dict)
    members: dict[str, list[str]] = field(default_factory=dict)

    def after_epoch(self, epoch: int) -> None:
        """Write the snapshots that are due after an epoch."""
        recipe = self.recipe
        step = epoch * num_batches(len(self.task.train), recipe.batch_size)
        if recipe.snapshot_every and epoch % recipe.snapshot_every == 0:
            self._snapshot(
                "snapshots", f"epoch-{epoch:04d}", self.task.tensors(), {"epoch": epoch, "update": step}
            )
        if epoch % recipe.posthoc_every and epoch != recipe.epochs:
            return
        for averaging in self.averages.values():
            if isinstance(averaging.rule, PowerEma):
                width = averaging.rule.sigma_rel
                note = {"posthoc": {"sigma_rel": width, "gamma": averaging.rule.gamma, "step": step}}
                name = f"sigma-{width:.4g}-update-{step:08d}"
                self._snapshot("posthoc", name, arrays_of_state(averaging.averaged_state())[0], note)

    def finish(self, measure: Measure) -> Json:
        """Write EMA and SWA, each with its scores, and name the snapshots; returns the averages' scores by
        name."""
        for family, names in self.members.items():
            self._manifest(self.directory / family, {}, notes={"members": names}).write(
                self.directory / family
            )
        metrics = {}
        for name, averaging in self.averages.items():
            if isinstance(averaging.rule, PowerEma) or not averaging.is_ready:
                continue
            refresh = self._refresh if averaging.buffers == "refresh" else None
            state = averaging.averaged_state(refresh=refresh)
            note = {"average": name, "updates": averaging.num_steps, "buffers": averaging.buffers}
            metrics[name] = self._write(self.directory / name, arrays_of_state(state)[0], note, measure)
        return metrics

    @property
    def _fitted(self) -> Json:
        """What a later reader must know that this was fitted to."""
        return {"data": self.task.notes["data"]} if "data" in self.task.notes else {}

    def _refresh(self, _model: torch.nn.Module) -> None:
        refresh_statistics(self.task, self.recipe, num_batches=MOST_REFRESH_BATCHES)

    def _snapshot(self, family: str, name: str, tensors: Mapping[str, np.ndarray], note: Json) -> None:
        self._write(self.directory / family / name, tensors, note)
        self.members.setdefault(family, []).append(name)

    def _write(
        self, directory: Path, tensors: Mapping[str, np.ndarray], note: Json, measure: Measure | None = None
    ) -> Json:
        """One checkpoint directory, complete; returns its metrics."""
        directory.mkdir(parents=True)
        metadata = {"format": "pt", METADATA_KEY: directory.relative_to(self.directory).as_posix()}
        write_tensors(directory, tensors, file_name=self.task.file_name, metadata=metadata)
        self.task.write_config(directory)
        outputs = describe_outputs(directory, content_hash(tensors, threads=1))
        metrics = measure(directory) if measure else {}
        self._manifest(directory, outputs, metrics=metrics, notes=note).write(directory)
        return metrics

    def _manifest(
        self, directory: Path, outputs: Json, *, notes: Json, metrics: Json | None = None
    ) -> Manifest:
        up = os.path.relpath(self.directory, directory)
        return Manifest(
            command="finetune",
            recipe=recipe_to_json(self.recipe),
            inputs=[
                entry | ({"path": os.path.normpath(Path(up, entry["path"]))} if "path" in entry else {})
                for entry in self.inputs
            ],
            outputs=outputs,
            metrics=metrics or {},
            notes={**notes, **self._fitted, **self.chosen},
        )
