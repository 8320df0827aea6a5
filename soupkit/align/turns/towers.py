"""What may be turned in a pre-norm transformer, found by its tensors' names: residual streams and attention
heads.

Two spellings are known: timm's VisionTransformer (by itself or inside open_clip) and open_clip's own towers.
Names propose; `soupkit.align.turns.proof.proved` runs the network and keeps what holds.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace

from soupkit.errors import AlignError
from soupkit.jsons import Json, JsonView


@dataclass(frozen=True)
class Layer:
    """A matrix W [out, in] (transposed: stored as [in, out]; kernels count as in) and its bias."""

    weight: str
    bias: str | None = None
    transposed: bool = False


@dataclass(frozen=True)
class Stream:
    """Who reads and writes a residual stream of D channels.

    readers: norm → the layers behind it; scales: layer scale → the layer before it; writers: layers; tables:
    embeddings, whose last axis is D.
    """

    readers: Mapping[str, tuple[Layer, ...]]
    scales: Mapping[str, Layer]
    writers: tuple[Layer, ...]
    tables: tuple[str, ...]

    @property
    def a_norm(self) -> str:
        """A tensor that lies on the stream and on nothing else."""
        return f"{next(iter(self.readers))}.weight"


@dataclass(frozen=True)
class Attention:
    """One self-attention of H heads with d units each: qkv [3 H d, D], out [D, H d]; what its heads may
    do."""

    name: str
    num_heads: int
    qkv: Layer
    out: Layer
    maps_qk: bool = True
    maps_vo: bool = True


@dataclass(frozen=True)
class Tower:
    """One transformer. stream: None where it cannot be turned; why: the reason."""

    name: str
    stream: Stream | None
    attentions: tuple[Attention, ...]
    why: str = ""

    def freedoms(self) -> list[str]:
        """What can be turned: "stream", "qk", "vo"."""
        kinds = {"stream": self.stream is not None}
        kinds |= {"qk": any(each.maps_qk for each in self.attentions)}
        kinds |= {"vo": any(each.maps_vo for each in self.attentions)}
        return [kind for kind, there in kinds.items() if there]

    def only(self, kinds: Collection[str]) -> Tower:
        """The tower with no other freedoms than these."""
        tower = self
        for kind in self.freedoms():
            tower = tower if kind in kinds else tower.without(kind)
        return tower

    def without(self, kind: str, why: str = "") -> Tower:
        """The tower with one of its freedoms given up."""
        stream = None if kind == "stream" else self.stream
        attentions = tuple(
            replace(each, maps_qk=each.maps_qk and kind != "qk", maps_vo=each.maps_vo and kind != "vo")
            for each in self.attentions
        )
        return replace(
            self, stream=stream, attentions=attentions, why="; ".join(filter(None, (self.why, why)))
        )


@dataclass(frozen=True)
class Spelling:
    """How a library names the parts of a transformer. last_readers: only the first that are there read the
    stream."""

    blocks: str
    norms: tuple[str, str]
    qkv: tuple[str, str]
    out: str
    mlp_in: tuple[str, ...]
    mlp_out: str
    scales: tuple[str, str]
    qk_norms: tuple[str, ...]
    writers: tuple[str, ...]
    tables: tuple[str, ...]
    norm_before: str
    last_norms: tuple[str, ...]
    last_readers: tuple[tuple[str, ...], ...]
    tolerated: tuple[str, ...] = ()


TIMM = Spelling(
    blocks=r"blocks\.\d+\.",
    norms=("norm1", "norm2"),
    qkv=("attn.qkv.weight", "attn.qkv.bias"),
    out="attn.proj",
    mlp_in=("mlp.fc1", "mlp.fc1_g", "mlp.fc1_x"),
    mlp_out="mlp.fc2",
    scales=("ls1.gamma", "ls2.gamma"),
    qk_norms=("attn.q_norm", "attn.k_norm"),
    writers=("patch_embed.proj",),
    tables=("cls_token", "reg_token", "dist_token", "pos_embed"),
    norm_before="norm_pre",
    last_norms=("norm", "fc_norm"),
    last_readers=(("attn_pool.kv",), ("head", "head_dist")),
    tolerated=("attn_pool.",),
)
OPEN_CLIP = Spelling(
    blocks=r"transformer\.resblocks\.\d+\.",
    norms=("ln_1", "ln_2"),
    qkv=("attn.in_proj_weight", "attn.in_proj_bias"),
    out="attn.out_proj",
    mlp_in=("mlp.c_fc",),
    mlp_out="mlp.c_proj",
    scales=("ls_1.gamma", "ls_2.gamma"),
    qk_norms=(),
    writers=("conv1",),
    tables=("class_embedding", "positional_embedding", "token_embedding.weight"),
    norm_before="ln_pre",
    last_norms=("ln_post", "ln_final"),
    last_readers=(("proj", "text_projection"),),
    tolerated=("logit_scale", "logit_bias"),
)


def towers_of(names: Iterable[str], num_heads: Mapping[str, int]) -> tuple[Tower, ...]:
    """The transformers among a network's tensors; num_heads: of every attention module, by its name.

    Raises AlignError for a network that holds none.
    """
    known = set(names)
    found: dict[str, Spelling] = {}
    for spelling in (TIMM, OPEN_CLIP):
        first = re.compile(rf"((?:.*\.)?){spelling.blocks}{re.escape(spelling.norms[0])}\.weight")
        found |= {match[1]: spelling for name in known if (match := first.fullmatch(name))}
    towers = []
    for prefix, spelling in sorted(found.items()):
        inner = [other for other in found if other != prefix and other.startswith(prefix)]
        beside = {other.partition(".")[0] + "." for other in inner} if not prefix else set(inner)
        own = {name.removeprefix(prefix) for name in known if name.startswith(prefix)}
        own = {name for name in own if not any(f"{prefix}{name}".startswith(each) for each in beside)}
        tower = _Reader(prefix, own, spelling, num_heads).tower()
        towers += [tower] if tower.freedoms() else []
    if not towers:
        raise AlignError(
            "this is no pre-norm vision transformer or CLIP that is known", hint="align without --rotate"
        )
    return tuple(towers)


def check_names(names: Iterable[str]) -> None:
    """Raise AlignError for a network that holds no transformer that is known, before any is built."""
    names = set(names)
    towers_of(names, {f"{name.partition('.attn.')[0]}.attn": 1 for name in names if ".attn." in name})


def towers_to_json(towers: Iterable[Tower]) -> Json:
    """What `towers_again` needs beside the names of tensors."""
    towers = list(towers)
    heads = {attention.name: attention.num_heads for tower in towers for attention in tower.attentions}
    return {"num_heads": heads, "freedoms": {tower.name: tower.freedoms() for tower in towers}}


def towers_again(names: Iterable[str], values: JsonView) -> tuple[Tower, ...]:
    """The towers that `towers_to_json` was asked about. Raises KeyError, TypeError for other values,
    AlignError."""
    freedoms = values["freedoms"]
    found = towers_of(names, values["num_heads"])
    return tuple(tower.only(freedoms[tower.name]) for tower in found if tower.name in freedoms)


@dataclass(frozen=True)
class _Reader:
    """Reads one tower off its tensors' names, which come without the prefix."""

    prefix: str
    own: set[str]
    spelling: Spelling
    num_heads: Mapping[str, int]

    def tower(self) -> Tower:
        name = self.prefix.rstrip(".") or "transformer"
        strange = sorted(name for name in self.own if not self._is_known(name))
        if strange:
            return Tower(name, None, (), f"{self.prefix}{strange[0]} is not known")
        headless = [block for block in self.blocks() if f"{self.prefix}{block}attn" not in self.num_heads]
        if headless:
            return Tower(name, None, (), f"{self.prefix}{headless[0]}attn says no number of heads")
        attentions = tuple(self._attention(block) for block in self.blocks())
        why = self._why_no_stream()
        return Tower(name, None if why else self._stream(), attentions, why)

    def blocks(self) -> list[str]:
        """The blocks, in order."""
        pattern = re.compile(self.spelling.blocks)
        found = {match[0] for name in self.own if (match := pattern.match(name))}
        return sorted(found, key=lambda block: int(block.rstrip(".").rpartition(".")[2]))

    def _is_known(self, name: str) -> bool:
        s = self.spelling
        inside = re.match(s.blocks, name)
        last = tuple(name for names in s.last_readers for name in names)
        layers: tuple[str, ...] = (s.norm_before, *s.writers, *s.last_norms, *last)
        single: tuple[str, ...] = (*s.tables, *last)
        if inside:
            name = name[inside.end() :]
            layers = (*s.norms, s.out, *s.mlp_in, s.mlp_out, "mlp.norm", *s.qk_norms)
            single = (*s.qkv, *s.scales)
        layer, _, kind = name.rpartition(".")
        return (
            name in single or (layer in layers and kind in ("weight", "bias")) or name.startswith(s.tolerated)
        )

    def _attention(self, block: str) -> Attention:
        s = self.spelling
        name = f"{self.prefix}{block}{s.out.partition('.')[0]}"
        weight, bias = (f"{block}{each}" for each in s.qkv)
        qkv = Layer(self.prefix + weight, self.prefix + bias if bias in self.own else None)
        normed = any(f"{block}{norm}.weight" in self.own for norm in s.qk_norms)
        return Attention(name, self.num_heads[name], qkv, self._layer(f"{block}{s.out}"), maps_qk=not normed)

    def _why_no_stream(self) -> str:
        s = self.spelling
        last = [norm for norm in s.last_norms if f"{norm}.weight" in self.own]
        if f"{s.norm_before}.weight" in self.own:
            return f"{self.prefix}{s.norm_before} writes its gains on the stream"
        if len(last) != 1:
            return f"{len(last)} norms behind the last block"
        return "" if self._last_readers() else f"nothing known reads {self.prefix}{last[0]}"

    def _stream(self) -> Stream:
        s = self.spelling
        readers: dict[str, tuple[Layer, ...]] = {}
        scales: dict[str, Layer] = {}
        writers: list[Layer] = []
        for block in self.blocks():
            qkv, out = self._attention(block).qkv, self._attention(block).out
            readers[f"{self.prefix}{block}{s.norms[0]}"] = (qkv,)
            inputs = [f"{block}{each}" for each in s.mlp_in if f"{block}{each}.weight" in self.own]
            readers[f"{self.prefix}{block}{s.norms[1]}"] = tuple(map(self._layer, inputs))
            both = (out, self._layer(f"{block}{s.mlp_out}"))
            writers += both
            gains = (f"{block}{each}" for each in s.scales)
            scales |= {
                self.prefix + gain: layer for gain, layer in zip(gains, both, strict=True) if gain in self.own
            }
        last = next(norm for norm in s.last_norms if f"{norm}.weight" in self.own)
        readers[self.prefix + last] = tuple(self._last_readers())
        writers += [self._layer(name) for name in s.writers if f"{name}.weight" in self.own]
        tables = tuple(self.prefix + name for name in s.tables if name in self.own)
        return Stream(readers, scales, tuple(writers), tables)

    def _last_readers(self) -> list[Layer]:
        for names in self.spelling.last_readers:
            plain = [Layer(self.prefix + name, transposed=True) for name in names if name in self.own]
            found = plain + [self._layer(name) for name in names if f"{name}.weight" in self.own]
            if found:
                return found
        return []

    def _layer(self, name: str) -> Layer:
        bias = f"{name}.bias"
        return Layer(f"{self.prefix}{name}.weight", self.prefix + bias if bias in self.own else None)
