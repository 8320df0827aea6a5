"""What open_clip_config.json says of a learned head, in a section that open_clip itself passes over."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace

from soupkit.checkpoint.config.classifier import SECTION
from soupkit.errors import CheckpointError
from soupkit.jsons import Json, JsonView


@dataclass(frozen=True)
class Classifier:
    """An image tower of CLIP under a linear head: logits = s · (W f) + b.

    num_classes, num_features: of W [C, E]; bias: whether there is b [C]; normalize: whether the tower's
    features are divided by their norm; logit_scale: whether s = exp(logit_scale), a weight of the checkpoint,
    or 1, as where the head was started from class embeddings times that. class_names, templates: what made
    the head, as far as it is known. parts: the other parts of CLIP that lie beside the tower, by the first
    word of their tensors' names; none of them but logit_scale has a say in the logits.
    """

    num_classes: int
    num_features: int
    bias: bool = True
    normalize: bool = True
    logit_scale: bool = False
    class_names: tuple[str, ...] = ()
    templates: tuple[str, ...] = ()
    parts: tuple[str, ...] = ()

    @classmethod
    def of(cls, config: JsonView) -> Classifier | None:
        """That of a configuration, None where it has none. Raises CheckpointError for what cannot be one."""
        if SECTION not in config:
            return None
        section, known = config[SECTION], {field.name for field in fields(cls)}
        try:
            unknown = sorted(section.keys() - known)
            values: Json = {key: _plain(value) for key, value in section.items() if key in known}
            found = cls(**values)
        except (AttributeError, TypeError) as error:
            raise _refusal(f"is not what says of a head: {error}") from error
        if unknown:
            raise _refusal(f"says {', '.join(unknown)}, which this soupkit does not know")
        found.check()
        return found

    def check(self) -> None:
        """Raise CheckpointError for values that cannot be meant."""
        counts = (self.num_classes, self.num_features)
        switches = (self.bias, self.normalize, self.logit_scale)
        words = (self.class_names, self.templates, self.parts)
        if not all(type(count) is int and count >= 1 for count in counts):
            raise _refusal(f"has {self.num_classes} classes and {self.num_features} features")
        if not all(type(switch) is bool for switch in switches):
            raise _refusal("has a bias, normalize or logit_scale that is not true or false")
        if not all(isinstance(word, tuple) and all(type(each) is str for each in word) for word in words):
            raise _refusal("has class_names, templates or parts that are no list of words")
        if self.class_names and len(self.class_names) != self.num_classes:
            raise _refusal(f"has {len(self.class_names)} class names for {self.num_classes} classes")
        if self.logit_scale and "logit_scale" not in self.parts:
            raise _refusal("scales the logits by logit_scale, which is not among its parts")

    @property
    def resting(self) -> frozenset[str]:
        """The parts that have no say in the logits."""
        return frozenset(self.parts) - ({"logit_scale"} if self.logit_scale else set())

    def given(self, options: Mapping[str, bool]) -> Classifier:
        """The same with another bias, normalize or logit_scale."""
        values: Json = dict(options)
        return replace(self, **values)

    def to_json(self) -> Json:
        """The section."""
        return {key: list(v) if isinstance(v, tuple) else v for key, v in asdict(self).items()}


def _plain(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


def _refusal(what: str) -> CheckpointError:
    return CheckpointError(
        f"open_clip_config.json: its section {SECTION!r} {what}",
        hint="soupkit convert writes it; train or convert the checkpoint again",
    )
