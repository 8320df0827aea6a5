"""Reads mergekit's YAML files and says the same in soupkit's recipes, for the methods that both have.

A mergekit file is a description, not code: `models` (or `slices`), `merge_method`, `base_model`,
`parameters`, `dtype`. It is followed to the letter of mergekit 0.1.5, or refused with the reason; what
soupkit does otherwise on purpose is in `notes`. Nothing in a file is ignored.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from soupkit.jsons import Json
from soupkit.recipe.mergekit.file import MergekitFile, Slice, Source, read_file
from soupkit.recipe.mergekit.methods import METHODS
from soupkit.recipe.mergekit.parameters import Parameters, check_known
from soupkit.recipe.mergekit.text import load_mergekit
from soupkit.recipe.mergekit.values import Model, refuse, shown
from soupkit.recipe.parse import suggestion


@dataclass(frozen=True)
class Translated:
    """A soupkit command with its options, and what will not be as in mergekit.

    config: the reference whose configuration goes along; None: the first. tokenizer: the one whose vocabulary
    every model must have, where the file names one. models: every reference that is read; adapters: those
    that are adapters on the base.
    """

    command: str
    options: Json
    notes: tuple[str, ...]
    config: str | None = None
    tokenizer: str | None = None
    models: tuple[str, ...] = ()
    adapters: tuple[str, ...] = ()


def translate(text: str, *, where: str, folder: Path | None = None) -> Translated:
    """Read a mergekit file. Raises RecipeError for what it is not, and for what soupkit does not do."""
    config = load_mergekit(text, where=where)
    name = config["merge_method"]
    if not isinstance(name, str) or name not in METHODS:
        hint = suggestion(name[:60] if isinstance(name, str) else "", METHODS)
        raise refuse(where, f"soupkit has no merge method {shown(name)}", hint=hint)
    return _Translation(read_file(config, method=name, where=where), where, folder).result()


class _Translation:
    """One file on its way: which checkpoints are merged on which, and what each is called."""

    def __init__(self, file: MergekitFile, where: str, folder: Path | None) -> None:
        self.file, self.where, self.folder = file, where, folder
        self.method = METHODS[file.method]
        check_known(file, where)
        self.base = self._base()
        self.slices = tuple(map(self._completed, file.slices))
        self._check_same_models()

    def result(self) -> Translated:
        merged = [self._merged(each) for each in self.slices]
        sources = [each.sources[0] for each in merged] if self._stacks else list(merged[0].sources)
        options: Json = {}
        if self.base is not None and not self.method.base_first:
            options["base"] = self._reference(self.base)
        options["refs"] = [self._reference(source.model) for source in sources]
        parameters = Parameters(self.file, merged, self.where)
        config, tokenizer = self._config(options["refs"]), self._tokenizer(options["refs"])
        command = self._command(parameters, config, sources)
        options |= parameters.options(command) | self._layers()
        if (dtype := self.file.out_dtype or self.file.dtype) is not None:
            options["dtype"] = dtype
        if parameters.settings:
            options["set"] = parameters.settings
        models = dict.fromkeys([*options["refs"], *([options["base"]] if "base" in options else [])])
        notes = (*self.method.notes, *parameters.notes, *self._notes())
        adapters = [
            name for name, source in zip(options["refs"], sources, strict=True) if source.model.adapter
        ]
        return Translated(command, options, notes, config, tokenizer, tuple(models), tuple(adapters))

    @property
    def _stacks(self) -> bool:
        """Whether slices may be of other models each."""
        return self.file.method == "passthrough" and not self.file.whole

    # Which checkpoints

    def _base(self) -> Model | None:
        """The base of the task vectors or of the arc: that of the file, or the one that all slices name
        instead."""
        if self.method.base == "ignored":
            for each in self.file.slices:
                if each.base is not None:
                    raise refuse(each.where, f"base_model of a slice: {self.file.method} reads no base")
            return None
        bases = [each.base or self.file.base for each in self.file.slices]
        if len(set(bases)) > 1:
            hint = "merge each slice by a file of its own, then stack them: soupkit merge passthrough"
            raise refuse(self.where, "slices on different bases", hint=hint)
        if bases[0] is None and self.method.base == "required":
            raise refuse(self.where, f"{self.file.method} without base_model")
        return bases[0]

    def _completed(self, each: Slice) -> Slice:
        """The slice with the base among its sources, where mergekit puts it there. Raises RecipeError for a
        wrong number of models."""
        models = [source.model for source in each.sources]
        if len(set(models)) < len(models):
            raise refuse(each.where, "names a model twice", hint="once, with the sum of its weights")
        base = self.base if self.base is not None else self.file.base
        sources = each.sources
        if self.file.whole and base is not None and base not in models:
            sources = (*sources, Source(base))
        elif self.base is not None and self.base not in models:
            raise refuse(
                each.where,
                f"base_model {shown(self.base.text)} is not among the sources",
                hint="mergekit wants the base in every slice, with its layer_range",
            )
        num, least, most = len(sources) - (self.base is not None), self.method.least, self.method.most
        if num < least or (most is not None and num > most):
            expected = (
                f"{least}" if least == most else f"{least} or more" if num < least else f"at most {most}"
            )
            beside = (
                " beside base_model" if self.base is not None else ", base_model among them" if base else ""
            )
            raise refuse(each.where, f"{self.file.method}: {num} models{beside}, expected {expected}")
        return Slice(sources, each.parameters, each.base, each.where)

    def _check_same_models(self) -> None:
        models = [[source.model for source in each.sources] for each in self.slices]
        if not self._stacks and any(each != models[0] for each in models):
            raise refuse(
                self.where,
                f"{len(models)} slices with {self.file.method} that name other models, or in another order",
                hint="merge each slice by a file of its own, then stack them: soupkit merge passthrough",
            )

    def _merged(self, each: Slice) -> Slice:
        """The sources that are merged, in soupkit's order: without the base, or the base first."""
        others = tuple(source for source in each.sources if source.model != self.base)
        first = tuple(
            source for source in each.sources if source.model == self.base and self.method.base_first
        )
        return Slice((*first, *others), each.parameters, each.base, each.where)

    # What they are called

    def _reference(self, model: Model) -> str:
        """A path or a Hub name; an adapter on --base is named by itself, one on another model as
        MODEL+ADAPTER."""
        below = self._placed(model.path, model.revision)
        if model.adapter is None:
            return below
        adapter = self._placed(model.adapter, model.adapter_revision)
        alone = self.base == Model(model.path, model.revision) and not self.method.base_first
        return adapter if alone else f"{below}+{adapter}"

    def _placed(self, path: str, revision: str | None) -> str:
        try:
            placed = self.folder / path if self.folder is not None else Path(path)
            there = placed.exists()
        except (OSError, ValueError) as error:
            raise refuse(
                self.where, f"the model {shown(path)} cannot be a path: {type(error).__name__}"
            ) from error
        if there and revision is not None:
            raise refuse(self.where, f"{shown(path)} is here, and has no revision {shown(revision)}")
        name = str(placed) if there else path
        return name if revision is None else f"{name}@{revision}"

    def _config(self, refs: Sequence[str]) -> str | None:
        """mergekit takes configuration, tokenizer and other files from base_model."""
        base = self.file.base
        found = self._tokenizer(refs) if base is None else self._placed(base.path, base.revision)
        return None if found == refs[0] else found

    def _tokenizer(self, refs: Sequence[str]) -> str | None:
        """Whose tokenizer the file asks for. Raises RecipeError where the configuration is another
        model's."""
        source, base = self.file.tokenizer, self.file.base
        if source is None:
            return None
        below = None if base is None else self._placed(base.path, base.revision)
        if source == "base":
            return below or refs[0].partition("+")[0]
        assert isinstance(source, Model)
        if source.adapter is not None:
            raise refuse(
                f"{self.where}: tokenizer_source", f"{shown(source.text)} is a model with an adapter"
            )
        found = self._placed(source.path, source.revision)
        if below is not None and below != found:
            raise refuse(
                f"{self.where}: tokenizer_source",
                f"the tokenizer of {found} with the configuration of {below}: soupkit copies both from "
                f"one model",
                hint="copy the tokenizer's files into the output",
            )
        return found

    # What is done

    def _command(self, parameters: Parameters, config: str | None, sources: Sequence[Source]) -> str:
        """`merge weighted` does plain sums; `merge linear` all that it has no options for."""
        if self.file.method != "linear":
            return self.method.command
        adapters = any(source.model.adapter for source in sources)
        plain = self.file.whole and not adapters and config is None and parameters.is_plain("normalize")
        return "merge weighted" if plain else "merge linear"

    def _layers(self) -> Json:
        """--layers: one range per stacked source, or per model its ranges in all slices, the base's last."""
        if self.file.whole:
            return {}
        if self._stacks:
            return {"layers": [_range(each.sources[0]) for each in self.slices]}
        merged = [self._merged(each).sources for each in self.slices]
        if self.base is not None and not self.method.base_first:
            bases = [
                next(source for source in each.sources if source.model == self.base) for each in self.slices
            ]
            merged = [(*sources, base) for sources, base in zip(merged, bases, strict=True)]
        ranges = [",".join(map(_range, sources)) for sources in zip(*merged, strict=True)]
        return {"layers": ranges[:1] if len(set(ranges)) == 1 else ranges}

    def _notes(self) -> list[str]:
        notes = []
        if self.file.name is not None:
            notes.append(
                f"name {shown(self.file.name)}: a name for mergekit-multi, the output is called by --out"
            )
        if (
            self.method.base == "ignored"
            and self.file.whole
            and len(self.slices[0].sources) > len(self._given())
        ):
            notes.append(f"{self.file.method} merges base_model as one more model, as mergekit does")
        if self.file.dtype and self.file.out_dtype and self.file.dtype != self.file.out_dtype:
            notes.append(
                f"mergekit rounds to {self.file.dtype} before it writes {self.file.out_dtype}, soupkit once"
            )
        return notes

    def _given(self) -> tuple[Source, ...]:
        return self.file.slices[0].sources


def _range(source: Source) -> str:
    assert source.layers is not None
    return f"{source.layers[0]}:{source.layers[1]}"
