"""A mergekit file as a structure: every key known, every value of its type, nothing left over.

What the structure means for a method is the translation's concern (mergekit.py).
"""

from __future__ import annotations

from dataclasses import dataclass, field

from soupkit.jsons import JsonView
from soupkit.recipe.mergekit.values import (
    Model,
    Parameters,
    items,
    mapping,
    model,
    parameters,
    refuse,
    scalar,
    shown,
    text,
)

KEYS = (
    "merge_method", "models", "slices", "base_model", "dtype", "out_dtype", "parameters", "tokenizer_source",
    "tokenizer", "chat_template", "name",
)  # fmt: skip
MOST_LAYERS = 10_000
"""Of an output: what a file says of layers is spelled out for each of them."""
DTYPES = ("float32", "float16", "bfloat16", "float64")


@dataclass(frozen=True)
class Source:
    """One model of a slice, with its own parameters; layers None: all of them."""

    model: Model
    parameters: Parameters = field(default_factory=dict)
    layers: tuple[int, int] | None = None


@dataclass(frozen=True)
class Slice:
    """Models that are merged layer by layer into some layers of the output."""

    sources: tuple[Source, ...]
    parameters: Parameters
    base: Model | None
    where: str

    @property
    def depth(self) -> int | None:
        """How many layers it gives; None: all that its models have."""
        layers = self.sources[0].layers
        return None if layers is None else layers[1] - layers[0]


@dataclass(frozen=True)
class MergekitFile:
    """The whole file. whole: it has `models:`, which are merged from first layer to last."""

    method: str
    slices: tuple[Slice, ...]
    whole: bool
    base: Model | None
    parameters: Parameters
    dtype: str | None
    out_dtype: str | None
    tokenizer: Model | str | None
    """The model whose tokenizer goes along, or "base"; None: that of the configuration."""
    name: str | None


def read_file(config: JsonView, *, method: str, where: str) -> MergekitFile:
    """Check the keys and types of a file. Raises RecipeError with the place in it."""
    _refuse_features(config, where)
    mapping(config, KEYS, where)
    given = [key for key in ("models", "slices") if config.get(key) is not None]
    if len(given) != 1:
        raise refuse(where, f"expected either `models` or `slices`, got {' and '.join(given) or 'neither'}")
    whole = given == ["models"]
    slices = (
        _models(config["models"], f"{where}: models")
        if whole
        else _slices(config["slices"], f"{where}: slices")
    )
    base = config.get("base_model")
    return MergekitFile(
        method,
        slices,
        whole,
        None if base is None else model(base, f"{where}: base_model"),
        parameters(config.get("parameters"), f"{where}: parameters"),
        _dtype(config.get("dtype"), f"{where}: dtype"),
        _dtype(config.get("out_dtype"), f"{where}: out_dtype"),
        _tokenizer(config, where),
        None if config.get("name") is None else text(config["name"], f"{where}: name"),
    )


def _refuse_features(config: JsonView, where: str) -> None:
    """What mergekit has and soupkit has not."""
    if config.get("modules") is not None:
        raise refuse(
            where,
            "soupkit does not know the key 'modules'",
            hint="it merges all tensors of a model alike: write models:, with filters where a part is to be "
            "merged otherwise",
        )
    if config.get("chat_template") is not None:
        raise refuse(
            f"{where}: chat_template",
            "soupkit writes no chat templates, it copies that of the base or first model",
            hint="leave it out, and put the template into tokenizer_config.json or chat_template.jinja "
            "of the output",
        )


def _models(value: object, where: str) -> tuple[Slice, ...]:
    found = []
    for place, entry in enumerate(items(value, where)):
        inner = f"{where}[{place}]"
        if not isinstance(entry, dict):
            raise refuse(
                inner, f"the model {shown(entry)}: expected model and parameters", hint="- model: PATH"
            )
        values = mapping(entry, ("model", "parameters"), inner)
        found.append(_source(values, inner))
    return (Slice(tuple(found), {}, None, where),)


def _slices(value: object, where: str) -> tuple[Slice, ...]:
    slices = tuple(_slice(entry, f"{where}[{place}]") for place, entry in enumerate(items(value, where)))
    if (layers := sum(each.depth or 0 for each in slices)) > MOST_LAYERS:
        raise refuse(where, f"{layers} layers, at most {MOST_LAYERS} are stacked")
    return slices


def _slice(value: object, where: str) -> Slice:
    values = mapping(value, ("sources", "parameters", "base_model", "residual_weight"), where)
    if values.get("residual_weight") is not None:
        raise refuse(where, "residual_weight has no effect in mergekit", hint="leave it out")
    sources = []
    for place, entry in enumerate(items(values.get("sources"), f"{where}.sources")):
        inner = f"{where}.sources[{place}]"
        source = mapping(entry, ("model", "layer_range", "parameters"), inner)
        sources.append(_source(source, inner, _range(source.get("layer_range"), f"{inner}.layer_range")))
    if len({last - first for first, last in (source.layers or (0, 0) for source in sources)}) > 1:
        raise refuse(f"{where}.sources", "their layer ranges are of different lengths")
    base = values.get("base_model")
    own = parameters(values.get("parameters"), f"{where}.parameters")
    return Slice(tuple(sources), own, None if base is None else model(base, f"{where}.base_model"), where)


def _source(values: JsonView, where: str, layers: tuple[int, int] | None = None) -> Source:
    if values.get("model") is None:
        raise refuse(where, "names no model", hint="model: PATH")
    own = parameters(values.get("parameters"), f"{where}.parameters")
    return Source(model(values["model"], f"{where}.model"), own, layers)


def _range(value: object, where: str) -> tuple[int, int]:
    """Layers first … stop − 1, at least one."""
    if not isinstance(value, list) or len(value) != 2:
        raise refuse(
            where, f"expected [FIRST, STOP], got {shown(value)}", hint="[0, 8] are the first eight layers"
        )
    first, stop = (int(scalar(item, "integer", f"{where}[{place}]")) for place, item in enumerate(value))
    if not 0 <= first < stop:
        raise refuse(where, f"[{first}, {stop}] holds no layers", hint="[0, 8] are the first eight layers")
    return first, stop


def _dtype(value: object, where: str) -> str | None:
    if value is None:
        return None
    name = text(value, where).removeprefix("torch.")
    if name not in DTYPES:
        raise refuse(where, f"dtype {shown(value)}: soupkit writes {', '.join(DTYPES)}")
    return name


def _tokenizer(config: JsonView, where: str) -> Model | str | None:
    """`tokenizer_source`, or the source of `tokenizer`. Raises RecipeError for one that is built from
    several."""
    source, block = config.get("tokenizer_source"), config.get("tokenizer")
    place = f"{where}: tokenizer_source"
    if block is not None:
        if source is not None:
            raise refuse(where, "has both tokenizer_source and tokenizer")
        place = f"{where}: tokenizer"
        values = mapping(block, ("source", "tokens", "pad_to_multiple_of"), place)
        for key in ("tokens", "pad_to_multiple_of"):
            if values.get(key) is not None:
                raise refuse(
                    f"{place}.{key}", "soupkit makes no new rows of embeddings", hint=f"leave {key} out"
                )
        source = values.get("source", "union")
    if source is None:
        return None
    if source == "union":
        raise refuse(
            place,
            "a tokenizer built from several: soupkit does not build one",
            hint="take that of one model (tokenizer_source: base), or cut vocabularies: soupkit merge "
            "… --embedding",
        )
    return "base" if source == "base" else model(source, place)
