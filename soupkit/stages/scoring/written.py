"""Checkpoints that are written, scored as they lie there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from soupkit.asked import Remembers
from soupkit.checkpoint.checkpoint import Checkpoint
from soupkit.checkpoint.hashing import content_hash
from soupkit.checkpoint.tensors import overwrite_values
from soupkit.events import Report, Scored, Told
from soupkit.merge.writer import Streamed
from soupkit.remembered import Remembered
from soupkit.stages.scoring.judges import Judge, remember_score, remembered_score
from soupkit.task.score import Score
from soupkit.world import World


class WrittenScores:
    """Scores checkpoints that are written, and remembers them under their content.

    refresh: batch-norm statistics are re-estimated first, and put in the place of the written ones.
    """

    def __init__(
        self, judge: Judge, recipe: Remembers, world: World, report: Report, *, refresh: bool
    ) -> None:
        self._judge, self._world, self._report, self._refresh = judge, world, report, refresh
        self._memory = Remembered.of("scores", recipe)
        self._fingerprint = judge.fingerprint()
        self._num_remembered = 0

    def candidate(self, directory: Path, streamed: Streamed) -> tuple[Score, Streamed]:
        """The score of a soup in a directory, and what is known of it then."""
        written = Checkpoint(directory)
        if self._refresh and self._judge.soup is not None:
            self._judge.soup.task.load(written)
            overwrite_values(written.specs, self._judge.soup.refresh())
            written = Checkpoint(directory)
            streamed = replace(streamed, output=content_hash(written, threads=self._world.num_threads))
        return self.score(directory.name, written, streamed.output, rows=()), streamed

    def score(self, name: str, checkpoint: Checkpoint, content: str, *, rows: Sequence[int]) -> Score:
        """The score of a checkpoint of this content. rows: which ingredient it is, none for a soup."""
        key = self._memory.key("written", content, self._fingerprint, self._judge.beside(rows))
        score = remembered_score(self._memory, key)
        self._num_remembered += score is not None
        if score is None:
            score = self._judge.of_written(checkpoint)
            remember_score(self._memory, key, score)
        self._report(Scored(name, score.metric, score.value, score.standard_error, score.num_examples))
        return score

    def tell(self) -> None:
        """Say how many scores were known, and if they could not be kept."""
        for text in self._memory.said(self._num_remembered, "scores"):
            self._report(Told(text))
