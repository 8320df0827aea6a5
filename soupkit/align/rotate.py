"""Beyond permutations: the residual stream of a pre-norm vision transformer may be rotated, in a plain checkpoint.

LayerNorm without gain and shift commutes with every orthogonal O that keeps the vector of ones: LN(O x) = O LN(x). So
gains and shifts are folded into the layers that read the norm's output, layer scales into those that write, and then
writers are multiplied by O and readers by Oᵀ. Shape suffixes: D width of the stream.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from soupkit.errors import AlignError

Tensors = Mapping[str, Tensor]
EMBEDDINGS = ("cls_token", "reg_token", "pos_embed", "dist_token")
_BLOCK = re.compile(r"blocks\.\d+\.")
_PARTS = re.compile(
    r"(norm[12]\.(weight|bias)|attn\.(qkv|proj)\.(weight|bias)|attn\.[qk]_norm\.(weight|bias)|mlp\.fc[12]\.(weight|bias)"
    r"|ls[12]\.gamma)"
)


@dataclass(frozen=True)
class Stream:
    """Who reads and writes the residual stream: norm → the layer behind it, gain → the layer before it, and writers."""

    readers: Mapping[str, str]
    scales: Mapping[str, str]
    writers: tuple[str, ...]
    embeddings: tuple[str, ...]

    @property
    def a_norm(self) -> str:
        """A tensor that lies on the stream and on nothing else."""
        return f"{next(iter(self.readers))}.weight"


def stream_of(names: Iterable[str]) -> Stream:
    """Find the stream of timm's VisionTransformer by its tensors' names. Raises AlignError for any other network."""
    known = set(names)
    blocks = sorted({match[0] for name in known if (match := _BLOCK.match(name))})
    final = "fc_norm" if "fc_norm.weight" in known else "norm"
    outside = {"patch_embed.proj", final, "head"}
    for name in known:
        block = _BLOCK.match(name)
        inside = block is not None and _PARTS.fullmatch(name, block.end()) is not None
        if not inside and name not in EMBEDDINGS and name.rpartition(".")[0] not in outside:
            raise AlignError(
                f"{name!r} is no part of a pre-norm VisionTransformer, so its stream cannot be rotated",
                hint="align without --rotate",
            )
    needed = {f"{part}.weight" for part in outside} | {f"{block}norm1.weight" for block in blocks}
    if not blocks or not needed <= known:
        raise AlignError("this is no pre-norm VisionTransformer with a classifier", hint="align without --rotate")
    readers = {f"{block}norm1": f"{block}attn.qkv" for block in blocks}
    readers |= {f"{block}norm2": f"{block}mlp.fc1" for block in blocks}
    scales = {f"{block}ls1.gamma": f"{block}attn.proj" for block in blocks}
    scales |= {f"{block}ls2.gamma": f"{block}mlp.fc2" for block in blocks}
    return Stream(
        readers | {final: "head"},
        {name: layer for name, layer in scales.items() if name in known},
        ("patch_embed.proj", *scales.values()),
        tuple(name for name in EMBEDDINGS if name in known),
    )


def fold(tensors: Tensors, stream: Stream) -> dict[str, Tensor]:
    """The same function with every norm's gain 1 and shift 0, and every layer scale 1; float64.

    W ← W diag(γ), b ← b + W β behind a norm; W ← diag(γ) W, b ← γ b before a layer scale. Raises AlignError where a
    shift has no bias to go to.
    """
    folded = {name: tensor.double().clone() for name, tensor in tensors.items()}
    for norm, layer in stream.readers.items():
        shift = folded.get(f"{norm}.bias")
        weight = folded[f"{layer}.weight"]
        if shift is not None and bool(shift.any()):
            if f"{layer}.bias" not in folded:
                raise AlignError(f"{layer} has no bias, so the shift of {norm} has no place to go")
            folded[f"{layer}.bias"] += weight @ shift
            shift.zero_()
        weight *= folded[f"{norm}.weight"]
        folded[f"{norm}.weight"].fill_(1)
    for name, layer in stream.scales.items():
        gain = folded[name]
        folded[f"{layer}.weight"] *= gain[:, None]
        if f"{layer}.bias" in folded:
            folded[f"{layer}.bias"] *= gain
        gain.fill_(1)
    return folded


def rotated(tensors: Tensors, stream: Stream, rotation_dd: Tensor) -> dict[str, Tensor]:
    """The same function with the stream turned by O: writers and embeddings O ·, readers · Oᵀ. `tensors` are folded."""
    turned = dict(tensors)
    for layer in stream.writers:
        weight = tensors[f"{layer}.weight"]
        turned[f"{layer}.weight"] = (rotation_dd @ weight.flatten(1)).reshape(weight.shape)
        if f"{layer}.bias" in tensors:
            turned[f"{layer}.bias"] = rotation_dd @ tensors[f"{layer}.bias"]
    for name in stream.embeddings:
        turned[name] = tensors[name] @ rotation_dd.T
    for layer in stream.readers.values():
        turned[f"{layer}.weight"] = tensors[f"{layer}.weight"] @ rotation_dd.T
    return turned


def best_rotation(target: Tensors, other: Tensors, stream: Stream) -> Tensor:
    """The orthogonal O with O·1 = 1 that maximises ⟨target, rotated(other, O)⟩: float64[D, D].

    Orthogonal Procrustes (Schönemann 1966, doi:10.1007/BF02289451) on the complement of 1: with Q a basis of it and
    U Σ Vᵀ = Qᵀ S Q, S[i, j] = Σ ⟨direction i of the target, direction j of the other⟩, it is Q U Vᵀ Qᵀ + 1 1ᵀ / D.
    """
    size = len(target[stream.a_norm])
    similarity = torch.zeros(size, size, dtype=torch.float64)
    for x, y in zip(_directions(target, stream), _directions(other, stream), strict=True):
        similarity += x @ y.T
    ones = torch.ones(size, 1, dtype=torch.float64)
    basis = torch.linalg.qr(torch.cat([ones, torch.eye(size, dtype=torch.float64)[:, 1:]], 1))[0][:, 1:]
    left, _, right = torch.linalg.svd(basis.T @ similarity @ basis)
    rotation: Tensor = basis @ left @ right @ basis.T + ones @ ones.T / size
    return rotation


def _directions(tensors: Tensors, stream: Stream) -> list[Tensor]:
    """Everything that lies on the stream, as [D, everything else]."""
    found = [tensors[f"{layer}.weight"].flatten(1) for layer in stream.writers]
    found += [tensors[f"{layer}.bias"][:, None] for layer in stream.writers if f"{layer}.bias" in tensors]
    found += [tensors[name].reshape(-1, tensors[name].shape[-1]).T for name in stream.embeddings]
    return found + [tensors[f"{layer}.weight"].T for layer in stream.readers.values()]
