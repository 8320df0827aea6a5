"""What to take of a file that holds more than a model's weights."""

from __future__ import annotations

from dataclasses import dataclass, fields

from soupkit.checkpoint.formats.shards import Empty
from soupkit.checkpoint.formats.state_dict import Prefer
from soupkit.errors import CheckpointError
from soupkit.jsons import Json, JsonView


@dataclass(frozen=True)
class Selection:
    """What to take of a file: see `soupkit.recipe.hub.Convert`; `to_json` has what is not as usual."""

    key: str | None = None
    prefer: Prefer = "auto"
    strip: tuple[str, ...] = ()
    drop: tuple[str, ...] = ()
    rename: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()
    empty: Empty = "error"

    def to_json(self) -> Json:
        """{"selection": the fields that are not as usual}, nothing where all are."""
        chosen = {
            each.name: list(value) if isinstance(value, tuple) else value
            for each in fields(self)
            if (value := getattr(self, each.name)) != each.default
        }
        return {"selection": chosen} if chosen else {}

    @staticmethod
    def from_json(values: JsonView) -> Selection:
        """The inverse of `to_json`, of what a manifest records. Raises CheckpointError."""
        try:
            given: Json = {
                key: tuple(each) if isinstance(each, list) else each for key, each in dict(values).items()
            }
            return Selection(**given)
        except (TypeError, ValueError) as error:
            raise CheckpointError(f"the manifest's selection cannot be read: {error}") from error
