"""The folder of a population: whether it is finished, what state an unfinished one was left in, and whose it
is."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

from soupkit.checkpoint.checkpoint import Checkpoint
from soupkit.errors import OutputError
from soupkit.given import given_by
from soupkit.jsons import Json
from soupkit.manifest import MANIFEST_NAME, Manifest
from soupkit.recipe.parse import recipe_to_json
from soupkit.recipe.population import TrainPopulation
from soupkit.train.population.regularise import member_name
from soupkit.train.population.state import about_state, find_state

STATE_FOLDER = ".unfinished"
SOUPS = ("average", "greedy")
WITHOUT_EFFECT = (
    *("base", "out", "overwrite", "dry_run", "download", "workers", "device", "threads", "strict_data"),
    *("resume", "save_every", "save_minutes", "ranks_per_member", "vectorize"),
)
"""Options that do not change what is trained; the base counts by its content."""


_DEFAULTS = {
    field.name: list(field.default) if isinstance(field.default, tuple) else field.default
    for field in dataclasses.fields(TrainPopulation)
}


class RunFolder:
    """What lies in `out`, for a recipe and the content of its base (None: random weights)."""

    def __init__(self, recipe: TrainPopulation, base_content: str | None) -> None:
        self.recipe, self.base_content = recipe, base_content
        self.out: Path = recipe.out
        self.state = recipe.out / STATE_FOLDER

    def about(self) -> Json:
        """What a state must agree in to be continued."""
        given = given_by({"data": self.recipe.data, "data_dir": self.recipe.data_dir})
        return {"recipe": recipe_to_json(self.recipe), "base": self.base_content, "data": given.get("data")}

    def prepare(self) -> None:
        """Make room: leave what is of this recipe, refuse what is of another, or remove it with `overwrite`.

        With `resume` off, an unfinished run is removed too, and with `overwrite` a finished one. Raises
        OutputError.
        """
        changes = self._changes()
        if changes and not self.recipe.overwrite:
            raise OutputError(
                f"{self.out} was trained with another recipe: {'; '.join(changes)}",
                hint="choose another --out, or replace it with --overwrite",
            )
        unfinished = self.state.exists() and not (self.out / MANIFEST_NAME).exists()
        if changes or ((unfinished or self.recipe.overwrite) and not self.recipe.resume):
            self._remove()
        self.state.mkdir(exist_ok=True)

    def finished(self) -> Manifest | None:
        """The manifest of a run that is complete; None when there is something left to do."""
        manifest = Manifest.read_if_any(self.out)
        for name in manifest.notes["members"] if manifest else ():
            Checkpoint(self.out / name)  # raises: a member without its weights is none
        return manifest

    def last_state(self) -> Path | None:
        """The state to go on from."""
        return find_state(self.state)

    def _changes(self) -> list[str]:
        """What this recipe wants that the folder's was not trained with, in words."""
        manifest, state = Manifest.read_if_any(self.out), find_state(self.state)
        if manifest is not None:
            was: Json = {"recipe": manifest.recipe, "base": manifest.notes.get("base")}
            was |= {"data": manifest.given["data"]} if "data" in manifest.given else {}
        elif state is not None:
            was = about_state(state)
        else:
            return []
        wanted = json.loads(json.dumps(self.about()))
        before = _DEFAULTS | was["recipe"]  # an option that came with a later soupkit had its default before
        changes = [
            f"{key} was {before[key]}, is now {value}"
            for key, value in wanted["recipe"].items()
            if key not in WITHOUT_EFFECT and before[key] != value
        ]
        changes += ["the files of the data are others"] * (was.get("data", wanted["data"]) != wanted["data"])
        return changes + ["the weights of the base are others"] * (was["base"] != wanted["base"])

    def _remove(self) -> None:
        """Remove an earlier run: the manifest first, so that what is left is never taken for a whole one."""
        manifest = Manifest.read_if_any(self.out)
        (self.out / MANIFEST_NAME).unlink(missing_ok=True)
        num_members = manifest.recipe["num_members"] if manifest else self.recipe.num_members
        names = [member_name(number) for number in range(max(num_members, self.recipe.num_members))]
        for name in (*names, *SOUPS):
            shutil.rmtree(self.out / name, ignore_errors=True)
        shutil.rmtree(self.state, ignore_errors=True)
