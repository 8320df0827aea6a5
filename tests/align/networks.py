"""Small random networks made of many operations, and a check of permutation groups by brute force."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from soupkit.align.spec import Permutation, PermutationSpec

C, HEADS = 12, 3


class Lambda(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[[Any], Any], *modules: nn.Module) -> None:
        super().__init__()
        self.inner = nn.ModuleList(modules)
        self.function = function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(x, *self.inner)


class Residual(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.inner(x)


class Attention(nn.Module):
    """Self-attention in one of the ways in which people lay out heads."""

    def __init__(
        self,
        layout: str,
        *,
        norm: bool = False,
        rope: bool = False,
        fused: bool = True,
        kv_heads: int = HEADS,
    ):
        super().__init__()
        self.layout, self.fused, self.kv_heads, self.size = layout, fused, kv_heads, C // HEADS
        self.qkv = nn.Linear(C, C + 2 * kv_heads * self.size)
        self.proj = nn.Linear(C, C)
        self.q_norm = nn.LayerNorm(self.size) if norm else nn.Identity()
        self.k_norm = nn.LayerNorm(self.size) if norm else nn.Identity()
        self.register_buffer(
            "angles", torch.linspace(0, 3, 16 * self.size).reshape(16, self.size), persistent=False
        )
        self.rope = rope

    def split(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        b, n, _ = x.shape
        qkv, d = self.qkv(x), self.size
        if self.layout == "3hd":
            return qkv.reshape(b, n, 3, HEADS, d).permute(2, 0, 3, 1, 4).unbind(0)
        if self.layout == "h3d":
            return tuple(qkv.reshape(b, n, HEADS, 3, d).permute(3, 0, 2, 1, 4)[i] for i in range(3))
        if self.layout == "hd3":
            return tuple(qkv.view(b, n, HEADS, d, 3).transpose(1, 2).select(-1, i) for i in range(3))
        if self.layout == "h(3d)":
            return qkv.view(b, n, HEADS, 3 * d).transpose(1, 2).chunk(3, dim=-1)
        q, k, v = qkv.split([C, self.kv_heads * d, self.kv_heads * d], dim=-1)
        return tuple(part.unflatten(-1, (-1, d)).transpose(1, 2) for part in (q, k, v))

    def rotate(self, x: torch.Tensor) -> torch.Tensor:
        angles = self.angles[: x.shape[-2]]
        turned = torch.stack([-x[..., 1::2], x[..., ::2]], -1).reshape(x.shape)
        return x * angles.cos() + turned * angles.sin()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.split(x)
        q, k = self.q_norm(q), self.k_norm(k)
        if self.rope:
            q, k = self.rotate(q), self.rotate(k)
        if self.fused:
            out = F.scaled_dot_product_attention(q, k, v, enable_gqa=self.kv_heads != HEADS)
        else:
            out = ((q @ k.transpose(-2, -1)) * self.size**-0.5).softmax(-1) @ v
        return self.proj(out.transpose(1, 2).flatten(2))


def _shuffle(x: torch.Tensor) -> torch.Tensor:
    b, c, h, w = x.shape
    return x.view(b, 3, c // 3, h, w).transpose(1, 2).reshape(b, c, h, w)


def _head_einsum(x: torch.Tensor, to: nn.Module) -> torch.Tensor:
    b, n, _ = x.shape
    heads = to(x).view(b, n, HEADS, -1)
    scores = torch.einsum("bihd,bjhd->bhij", heads, heads).softmax(-1)
    return torch.einsum("bhij,bjhd->bihd", scores, heads).reshape(b, n, -1)


def _channel_attention(x: torch.Tensor, to: nn.Module) -> torch.Tensor:
    b, n, _ = x.shape
    q, k, v = to(x).reshape(b, n, 3, HEADS, -1).permute(2, 0, 3, 4, 1)
    scores = (F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1)).softmax(-1)
    return (scores @ v).permute(0, 3, 1, 2).reshape(b, n, -1)


def _talking(x: torch.Tensor, qk: nn.Module, v: nn.Module, mix: nn.Module) -> torch.Tensor:
    b, n, _ = x.shape
    q, k = qk(x).view(b, n, 2, HEADS, -1).permute(2, 0, 3, 1, 4)
    scores = mix((q @ k.mT).permute(0, 2, 3, 1)).permute(0, 3, 1, 2).softmax(-1)
    return (scores @ v(x).view(b, n, HEADS, -1).transpose(1, 2)).transpose(1, 2).reshape(b, n, -1)


def _softmax_over_heads(x: torch.Tensor, to: nn.Module) -> torch.Tensor:
    b, n, _ = x.shape
    return to(x).view(b, n, HEADS, -1).softmax(2).flatten(2)


def _first_head_apart(x: torch.Tensor, to: nn.Module) -> torch.Tensor:
    heads = to(x).unflatten(-1, (HEADS, -1))
    return torch.cat([heads[..., :1, :].relu(), heads[..., 1:, :].tanh()], dim=-2).flatten(-2)


def _write_in_place(x: torch.Tensor, to: nn.Module) -> torch.Tensor:
    out = torch.zeros_like(x)
    out[..., : C // 2] += to(x)[..., C // 2 :]
    return out


def images() -> dict[str, Callable[[], nn.Module]]:
    """Pieces that map [B, C, H, W] to itself."""
    conv = lambda **options: nn.Conv2d(C, C, 3, padding=1, **options)  # noqa: E731
    return {
        "conv": conv,
        "strided bottleneck": lambda: nn.Sequential(
            nn.Conv2d(C, 6, 1),
            nn.BatchNorm2d(6),
            nn.ReLU(),
            nn.Conv2d(6, 6, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(6, C, 1),
        ),
        "grouped": lambda: nn.Sequential(conv(), nn.GELU(), conv(groups=3), nn.ReLU(), nn.Conv2d(C, C, 1)),
        "grouped, grouped otherwise": lambda: nn.Sequential(conv(groups=3), conv(groups=4), conv(groups=2)),
        "depthwise": lambda: nn.Sequential(
            conv(groups=C), nn.Conv2d(C, 2 * C, 1), nn.PReLU(2 * C), nn.Conv2d(2 * C, C, 1)
        ),
        "depthwise, twice as wide": lambda: nn.Sequential(
            nn.Conv2d(C, 2 * C, 1, groups=C), nn.Conv2d(2 * C, C, 1)
        ),
        "batch norm": lambda: nn.BatchNorm2d(C),
        "group norm": lambda: nn.Sequential(nn.Conv2d(C, C, 1), nn.GroupNorm(3, C), nn.Conv2d(C, C, 1)),
        "group norm of the stream": lambda: nn.GroupNorm(4, C),
        "gate": lambda: Lambda(
            lambda x, gate: x * gate(x),
            nn.Sequential(
                nn.AdaptiveAvgPool2d(1), nn.Conv2d(C, 4, 1), nn.ReLU(), nn.Conv2d(4, C, 1), nn.Sigmoid()
            ),
        ),
        "glu": lambda: nn.Sequential(nn.Conv2d(C, 2 * C, 1), nn.GLU(1), nn.Conv2d(C, C, 1)),
        "cat": lambda: Lambda(
            lambda x, a, b: b(torch.cat([a(x), x], 1)), nn.Conv2d(C, 5, 1), nn.Conv2d(C + 5, C, 1)
        ),
        "cat, then grouped": lambda: Lambda(
            lambda x, a, b: b(torch.cat([a(x), x], 1)), nn.Conv2d(C, 6, 1), nn.Conv2d(C + 6, C, 1, groups=3)
        ),
        "chunks": lambda: Lambda(
            lambda x, a, b, c: c(torch.cat([b(p) for p in a(x).chunk(3, 1)], 1)),
            nn.Conv2d(C, C, 1),
            nn.Conv2d(C // 3, C // 3, 1),
            nn.Conv2d(C, C, 1),
        ),
        "shuffle": lambda: Lambda(lambda x, a, b: b(_shuffle(a(x))), conv(), conv()),
        "channel shuffle": lambda: nn.Sequential(conv(), nn.ChannelShuffle(3), conv(groups=3), conv()),
        "pixel shuffle": lambda: nn.Sequential(
            nn.Conv2d(C, 4 * C, 1), nn.PixelShuffle(2), nn.AvgPool2d(2), conv()
        ),
        "space to depth": lambda: nn.Sequential(
            nn.PixelUnshuffle(2), nn.Conv2d(4 * C, 4 * C, 1), nn.PixelShuffle(2)
        ),
        "transposed": lambda: nn.Sequential(nn.ConvTranspose2d(C, 8, 2, 2), nn.ReLU(), nn.Conv2d(8, C, 2, 2)),
        "transposed, grouped": lambda: nn.ConvTranspose2d(C, C, 3, padding=1, groups=3),
        "weight standardised": lambda: Lambda(
            lambda x, c: F.conv2d(
                x,
                F.batch_norm(c.weight.reshape(1, C, -1), None, None, training=True).reshape_as(c.weight),
                padding=1,
            ),
            conv(),
        ),
        "padded channels": lambda: Lambda(
            lambda x, a: F.pad(a(x), (0, 0, 0, 0, 2, 2)),
            nn.Sequential(nn.Conv2d(C, C - 4, 1), nn.BatchNorm2d(C - 4)),
        ),
        "layer norm of channels": lambda: Lambda(
            lambda x, norm: norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), nn.LayerNorm(C)
        ),
        "rolled windows": lambda: Lambda(
            lambda x, a: torch.roll(a(x.unflatten(-1, (2, -1)).transpose(-1, -2).flatten(-2)), (1,), (-1,)),
            conv(),
        ),
        "rolled channels": lambda: Lambda(lambda x, a, b: b(torch.roll(a(x), 1, 1)), conv(), conv()),
        "scaled": lambda: Lambda(
            lambda x, c: x * c.weight[None, :, None, None].relu() + c.bias[0], nn.BatchNorm2d(C)
        ),
        "flattened": lambda: Lambda(
            lambda x, a, b: x + b(a(x).flatten(1))[:, :, None, None], nn.Conv2d(C, 5, 1), nn.Linear(5 * 64, C)
        ),
    }


def tokens() -> dict[str, Callable[[], nn.Module]]:
    """Pieces that map [B, N, C] to itself."""
    pieces: dict[str, Callable[[], nn.Module]] = {
        f"attention {layout}{' norm' * norm}{' rope' * rope}{' plain' * (not fused)}": (
            lambda layout=layout, norm=norm, rope=rope, fused=fused: Attention(
                layout, norm=norm, rope=rope, fused=fused
            )
        )
        for layout in ("3hd", "h3d", "hd3", "h(3d)", "split")
        for norm, rope, fused in ((False, False, True), (True, False, False), (False, True, True))
        if layout in ("3hd", "split") or not (norm or rope)  # which come after queries and keys are apart
    }
    return pieces | {
        "attention grouped": lambda: Attention("split", kv_heads=1),
        "multi-head": lambda: Lambda(
            lambda x, a: a(x, x, x, need_weights=False)[0], nn.MultiheadAttention(C, HEADS, batch_first=True)
        ),
        "mlp": lambda: nn.Sequential(nn.LayerNorm(C), nn.Linear(C, 20), nn.GELU(), nn.Linear(20, C)),
        "swiglu": lambda: Lambda(
            lambda x, a, b: b(F.silu(a(x).chunk(2, -1)[0]) * a(x).chunk(2, -1)[1]),
            nn.Linear(C, 20),
            nn.Linear(10, C),
        ),
        "token mixer": lambda: Lambda(
            lambda x, mlp: mlp(x.transpose(1, 2)).transpose(1, 2),
            nn.Sequential(nn.Linear(16, 7), nn.GELU(), nn.Linear(7, 16)),
        ),
        "einsum": lambda: Lambda(_head_einsum, nn.Linear(C, C)),
        "channel attention": lambda: Lambda(_channel_attention, nn.Linear(C, 3 * C)),
        "talking heads": lambda: Lambda(
            _talking, nn.Linear(C, 2 * C), nn.Linear(C, C), nn.Linear(HEADS, HEADS)
        ),
        "softmax over heads": lambda: Lambda(_softmax_over_heads, nn.Linear(C, C)),
        "sum over heads": lambda: Lambda(
            lambda x, to, back: back(to(x).unflatten(-1, (HEADS, -1)).sum(-2)),
            nn.Linear(C, C),
            nn.Linear(C // HEADS, C),
        ),
        "turned heads": lambda: Lambda(
            lambda x, to: to(x).unflatten(-1, (HEADS, -1)).mT.flatten(-2), nn.Linear(C, C)
        ),
        "first head apart": lambda: Lambda(_first_head_apart, nn.Linear(C, C)),
        "written in place": lambda: Lambda(_write_in_place, nn.Linear(C, C)),
        "cumulated": lambda: Lambda(lambda x, a: a(x).cumsum(-1), nn.Linear(C, C)),
        "sorted": lambda: Lambda(lambda x, a: a(x).sort(-1).values, nn.Linear(C, C)),
        "norm per head": lambda: Lambda(
            lambda x, a, norm: norm(a(x).unflatten(-1, (HEADS, -1))).flatten(-2),
            nn.Linear(C, C),
            nn.LayerNorm(C // HEADS),
        ),
        "rms norm": lambda: nn.RMSNorm(C),
        "repeated": lambda: Lambda(lambda x, a: a(x).repeat(1, 1, 3), nn.Linear(C, C // 3)),
        "interleaved": lambda: Lambda(lambda x, a: a(x).repeat_interleave(3, -1), nn.Linear(C, C // 3)),
    }


class Network(nn.Module):
    """A stem, image pieces, token pieces, a head; some pieces beside a skip connection, one of them twice."""

    def __init__(
        self, image_pieces: list[nn.Module], token_pieces: list[nn.Module], *, twice: bool = False
    ) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, C, 3, padding=1)
        self.images = nn.Sequential(*image_pieces)
        self.pool = nn.MaxPool2d(2)
        self.position = nn.Parameter(torch.randn(1, 16, C))
        self.tokens = nn.Sequential(*token_pieces, *(token_pieces[:1] if twice else []))
        self.head = nn.Linear(C, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.pool(self.images(self.stem(x))).flatten(2).transpose(1, 2)
        return self.head(self.tokens(x + self.position).mean(1))


def random_network(seed: int) -> tuple[Network, list[str]]:
    """A network of up to five random pieces, and their names."""
    generator = np.random.default_rng(seed)
    torch.manual_seed(seed)
    chosen, names = [], []
    for pieces, most in ((images(), 3), (tokens(), 2)):
        picked = generator.choice(list(pieces), size=generator.integers(1, most + 1))
        built = [pieces[name]() for name in picked]
        chosen.append([Residual(piece) if generator.random() < 0.4 else piece for piece in built])
        names += [str(name) for name in picked]
    return Network(*chosen, twice=bool(generator.random() < 0.2)), names


def prepared(model: nn.Module, seed: int = 0) -> nn.Module:
    """In float64 and eval mode, with no parameter or buffer at a special value."""
    generator = torch.Generator().manual_seed(seed)
    model = model.double().eval()
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            noise = torch.rand(tensor.shape, generator=generator, dtype=torch.float64)
            tensor.copy_(noise + 0.5 if "running_var" in name else tensor + 0.6 * noise - 0.3)
    return model


def change(
    model: nn.Module, spec: PermutationSpec, permutation: Permutation, inputs: tuple[torch.Tensor, ...]
) -> float:
    """Relative change of the output when every tensor is gathered in numpy, axis by axis, and loaded
    strictly."""
    before = model(*inputs).detach()
    original = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    moved = {}
    for name, tensor in original.items():
        array = tensor.numpy()
        for axis in range(array.ndim):
            index = spec.index(name, axis, permutation)
            array = array if index is None else np.take(array, index, axis)
        moved[name] = torch.from_numpy(np.array(array))
    model.load_state_dict(moved, strict=True)
    after = model(*inputs).detach()
    model.load_state_dict(original)
    return float((after - before).abs().max() / before.abs().max())
