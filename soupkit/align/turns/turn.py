"""Maps of a transformer that no permutation reaches: its residual stream turned, its heads seen in another
basis.

LayerNorm without gain and shift commutes with every orthogonal O that keeps the vector of ones: LN(O x) = O
LN(x). So gains are folded into the layers that read the norm's output, layer scales into those that write,
and then writers are multiplied by O and readers by Oᵀ. In a head, scores (Q x)ᵀ(K y) stay when Q ← M Q, K ←
M⁻ᵀ K, and its output stays when V ← N V, out ← out N⁻¹; a bias of K adds the same to all scores of a query,
so softmax does not see it. The result is a plain checkpoint. Shape suffixes: D width of the stream, H heads,
d units of a head.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from soupkit.align.turns.towers import Attention, Layer, Stream, Tower
from soupkit.errors import AlignError

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Turn:
    """What is done to a folded network. Missing parts stay as they are.

    rotations: tower → O float64[D, D]. orders: attention → which head comes to each place, int64[H]. qk, vo:
    attention → M and N of the head at each place, float64[H, d, d].
    """

    rotations: Mapping[str, Tensor] = field(default_factory=dict)
    orders: Mapping[str, Tensor] = field(default_factory=dict)
    qk: Mapping[str, Tensor] = field(default_factory=dict)
    vo: Mapping[str, Tensor] = field(default_factory=dict)

    def then(self, after: Turn) -> Turn:
        """The turn that does this one and `after` to the result."""
        rotations = {**self.rotations}
        for tower, rotation in after.rotations.items():
            rotations[tower] = rotation @ rotations[tower] if tower in rotations else rotation
        orders = {**self.orders}
        for name, order in after.orders.items():
            orders[name] = orders[name][order] if name in orders else order
        return Turn(
            rotations,
            orders,
            _composed(self.qk, after.qk, after.orders),
            _composed(self.vo, after.vo, after.orders),
        )

    def to_arrays(self) -> Tensors:
        """Part/name → tensor, as a file holds it."""
        return {
            f"{part}/{name}": tensor
            for part in ("rotations", "orders", "qk", "vo")
            for name, tensor in getattr(self, part).items()
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Tensor]) -> Turn:
        """Read what `to_arrays` gave. Raises ValueError for anything else."""
        parts: dict[str, dict[str, Tensor]] = {part: {} for part in ("rotations", "orders", "qk", "vo")}
        for key, tensor in arrays.items():
            part, _, name = key.partition("/")
            if part not in parts:
                raise ValueError(f"{key!r} is no part of a turn")
            parts[part][name] = tensor
        return cls(**parts)


def fold(tensors: Mapping[str, Tensor], towers: Iterable[Tower]) -> Tensors:
    """The same function with every norm's gain 1, its shift 0, every layer scale 1, and no bias of K;
    float64.

    W ← W diag(γ), b ← b + W β behind a norm; W ← diag(γ) W, b ← γ b before a layer scale. Where a reader has
    no bias the norm keeps β / γ. Only what may be turned is folded. Raises AlignError where γ is 0 and β is
    not.
    """
    folded = {
        name: tensor.double().clone() if tensor.is_floating_point() else tensor
        for name, tensor in tensors.items()
    }
    for tower in towers:
        if tower.stream is not None:
            for norm, layers in tower.stream.readers.items():
                _fold_norm(folded, norm, layers)
            for name, layer in tower.stream.scales.items():
                _scale_rows(folded, layer, folded[name])
                folded[name].fill_(1)
        for attention in tower.attentions:
            if attention.maps_qk and attention.qkv.bias is not None:
                folded[attention.qkv.bias].chunk(3)[1].zero_()
    return folded


def turned(tensors: Mapping[str, Tensor], towers: Iterable[Tower], turn: Turn) -> Tensors:
    """The same function, turned. `tensors` are folded, float64; those that stay are shared."""
    result = dict(tensors)
    for tower in towers:
        if tower.stream is not None and tower.name in turn.rotations:
            _rotate(result, tower.stream, turn.rotations[tower.name])
        for attention in tower.attentions:
            _turn_heads(result, attention, turn)
    return result


def matrix(tensors: Mapping[str, Tensor], layer: Layer) -> Tensor:
    """W [out, in], not copied."""
    weight = tensors[layer.weight]
    return weight.T if layer.transposed else weight.flatten(1)


def heads(tensors: Mapping[str, Tensor], attention: Attention) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Q, K, V with their biases as a last column [H, d, D + 1], and the transposed output [H, d, D]."""
    weight = tensors[attention.qkv.weight]
    bias = tensors[attention.qkv.bias] if attention.qkv.bias is not None else weight.new_zeros(len(weight))
    q, k, v = torch.cat([weight, bias[:, None]], 1).reshape(3, attention.num_heads, -1, weight.shape[1] + 1)
    out = tensors[attention.out.weight]
    return q, k, v, out.T.reshape(attention.num_heads, -1, len(out))


def balanced(tensors: Mapping[str, Tensor], towers: Iterable[Tower]) -> Turn:
    """The maps of heads that make Q Qᵀ = K Kᵀ and V Vᵀ = outᵀ out: of all equivalent heads those of the least
    norm.

    M = S^½ with S = A^-½ (A^½ B A^½)^½ A^-½, the geometric mean of A⁻¹ and B, A = Q Qᵀ, B = K Kᵀ (Bhatia
    2007, Positive Definite Matrices, ch. 4): the one symmetric positive M with M A M = M⁻¹ B M⁻¹. Heads whose
    Gram is singular to rounding stay as they are. What remains of the freedom of equally balanced heads are
    orthogonal maps.
    """
    qk, vo = {}, {}
    for attention in (each for tower in towers for each in tower.attentions):
        q, k, v, out = heads(tensors, attention)
        if attention.maps_qk:
            qk[attention.name] = _balancing(q, k)
        if attention.maps_vo:
            vo[attention.name] = _balancing(v, out)
    return Turn(qk=qk, vo=vo)


def random_turn(towers: Sequence[Tower], tensors: Mapping[str, Tensor], seed: int) -> Turn:
    """A turn in every freedom, far from the identity: to prove that the network permits it."""
    generator = torch.Generator().manual_seed(seed)
    rotations, orders, maps = {}, {}, {"qk": {}, "vo": {}}  # type: ignore[var-annotated]
    for tower in towers:
        if tower.stream is not None:
            rotations[tower.name] = random_rotation(len(tensors[tower.stream.a_norm]), generator)
        for attention in tower.attentions:
            num, units = heads(tensors, attention)[3].shape[:2]
            orders[attention.name] = torch.randperm(num, generator=generator)
            noise = (
                0.3 * torch.randn(2, num, units, units, generator=generator, dtype=torch.float64) / units**0.5
            )
            qk, vo = torch.eye(units, dtype=torch.float64) + noise
            maps["qk"] |= {attention.name: qk} if attention.maps_qk else {}
            maps["vo"] |= {attention.name: vo} if attention.maps_vo else {}
    return Turn(rotations, orders, maps["qk"], maps["vo"])


def random_rotation(size: int, generator: torch.Generator) -> Tensor:
    """A random orthogonal float64[D, D] that keeps the vector of ones."""
    basis = complement_of_ones(size)
    noise = torch.randn(size - 1, size - 1, generator=generator, dtype=torch.float64)
    inner: Tensor = torch.linalg.qr(noise)[0]
    return basis @ inner @ basis.T + torch.full((size, size), 1 / size, dtype=torch.float64)


def complement_of_ones(size: int) -> Tensor:
    """An orthonormal basis of the vectors that sum to zero: float64[D, D - 1]."""
    start = torch.cat([torch.ones(size, 1), torch.eye(size)[:, 1:]], 1).double()
    basis: Tensor = torch.linalg.qr(start)[0][:, 1:]
    return basis


def _fold_norm(folded: Tensors, norm: str, layers: Sequence[Layer]) -> None:
    gain, shift = folded[f"{norm}.weight"], folded.get(f"{norm}.bias")
    if shift is not None and bool(shift.any()):
        if all(layer.bias is not None for layer in layers):
            for layer in layers:
                folded[str(layer.bias)] += matrix(folded, layer) @ shift
            shift.zero_()
        elif bool(shift[gain == 0].any()):
            raise AlignError(f"{norm} has gains of 0 with shifts, and a layer without bias behind it")
        else:
            shift.copy_(torch.where(gain == 0, 0.0, shift / gain))
    for layer in layers:
        matrix(folded, layer).mul_(gain)
    gain.fill_(1)


def _scale_rows(tensors: Tensors, layer: Layer, gain: Tensor) -> None:
    matrix(tensors, layer).mul_(gain[:, None])
    if layer.bias is not None:
        tensors[layer.bias] *= gain


def _rotate(tensors: Tensors, stream: Stream, rotation_dd: Tensor) -> None:
    for layer in stream.writers:
        _put(tensors, layer, rotation_dd @ matrix(tensors, layer))
        if layer.bias is not None:
            tensors[layer.bias] = rotation_dd @ tensors[layer.bias]
    for name in (*stream.tables, *stream_shifts(tensors, stream)):
        tensors[name] = tensors[name] @ rotation_dd.T
    for layers in stream.readers.values():
        for layer in layers:
            _put(tensors, layer, matrix(tensors, layer) @ rotation_dd.T)


def stream_shifts(tensors: Mapping[str, Tensor], stream: Stream) -> list[str]:
    """The norms' shifts that could not be folded away, or that are zero."""
    return [name for norm in stream.readers if (name := f"{norm}.bias") in tensors]


def _turn_heads(tensors: Tensors, attention: Attention, turn: Turn) -> None:
    name = attention.name
    if not any(name in part for part in (turn.orders, turn.qk, turn.vo)):
        return
    q, k, v, out = heads(tensors, attention)
    order = turn.orders.get(name, torch.arange(attention.num_heads))
    q, k, v, out = q[order], k[order], v[order], out[order]
    if name in turn.qk:
        q, k = turn.qk[name] @ q, torch.linalg.inv(turn.qk[name]).mT @ k
    if name in turn.vo:
        v, out = turn.vo[name] @ v, torch.linalg.inv(turn.vo[name]).mT @ out
    qkv = torch.stack([q, k, v]).flatten(0, 2)
    tensors[attention.qkv.weight] = qkv[:, :-1].contiguous()
    if attention.qkv.bias is not None:
        tensors[attention.qkv.bias] = qkv[:, -1].contiguous()
    tensors[attention.out.weight] = out.flatten(0, 1).T.contiguous()


def _put(tensors: Tensors, layer: Layer, weight: Tensor) -> None:
    shape = tensors[layer.weight].shape
    tensors[layer.weight] = (weight.T if layer.transposed else weight).reshape(shape)


def _balancing(a: Tensor, b: Tensor) -> Tensor:
    """The symmetric M [H, d, d] for which M a and M⁻ᵀ b have the same Gram; the identity where that is
    undefined."""
    gram_a, gram_b = a @ a.mT, b @ b.mT
    identity = torch.eye(a.shape[1], dtype=a.dtype)
    regular = (torch.linalg.cond(gram_a) < 1e12) & (torch.linalg.cond(gram_b) < 1e12)
    gram_a, gram_b = (torch.where(regular[:, None, None], gram, identity) for gram in (gram_a, gram_b))
    root = _power(gram_a, 0.5)
    inverse = torch.linalg.inv(root)
    mean = inverse @ _power(root @ gram_b @ root, 0.5) @ inverse
    return _power(mean, 0.5)


def _power(symmetric: Tensor, exponent: float) -> Tensor:
    values, vectors = torch.linalg.eigh((symmetric + symmetric.mT) / 2)
    power: Tensor = (vectors * values.clamp_min(0)[..., None, :] ** exponent) @ vectors.mT
    return power


def _composed(
    first: Mapping[str, Tensor], then: Mapping[str, Tensor], orders: Mapping[str, Tensor]
) -> Tensors:
    result = {name: maps[orders[name]] if name in orders else maps for name, maps in first.items()}
    for name, maps in then.items():
        result[name] = maps @ result[name] if name in result else maps
    return result
