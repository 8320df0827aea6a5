"""The weights of several models as rows of one buffer, so that averaging them is one operation on it.

Shape suffixes: M models, D elements of a model's floating state.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

ALIGN = 16
"""Every tensor starts at a multiple of this many elements, as it would in memory of its own."""


@dataclass(frozen=True)
class Span:
    """Where a tensor lies in a row: elements offset … offset + numel − 1 of the buffer of its dtype."""

    dtype: torch.dtype
    offset: int
    shape: torch.Size

    def view(self, row: Tensor) -> Tensor:
        """The tensor's elements of a row [D]; images' weights [O, I, H, W] lie channels last, as convolutions
        like."""
        flat = row[self.offset : self.offset + self.shape.numel()]
        if len(self.shape) != 4:
            return flat.view(self.shape)
        out, channels, height, width = self.shape
        return flat.view(out, height, width, channels).permute(0, 3, 1, 2)


Row = Mapping[torch.dtype, Tensor]
"""The floating state of one model: a vector [D] per dtype."""


class Flat:
    """The floating state (parameters and persistent buffers, thus also batch-norm statistics) of M models.

    rows: per dtype one buffer [M × D], of which every parameter and buffer of every model becomes a view, so
    that writing to a row changes the model. Names are those of the models' state dicts; of tied tensors the
    first. Parameters come first in a row: num_parameters of each dtype. Integers stay where they are. Memory:
    the models'.
    """

    def __init__(self, models: Sequence[nn.Module], device: torch.device) -> None:
        self.models = models
        self.spans, self.num_parameters, sizes = _lay_out(models[0])
        self.rows = {
            dtype: torch.zeros(len(models), size, dtype=dtype, device=device) for dtype, size in sizes.items()
        }
        for row, model in enumerate(models):
            self._move(model.to(device), row)

    def row(self, number: int) -> dict[torch.dtype, Tensor]:
        """The state of one model; views."""
        return {dtype: rows[number] for dtype, rows in self.rows.items()}

    def tensors(self, row: Row) -> dict[str, Tensor]:
        """A row, of this buffer or of another like it, as named tensors; views."""
        return {name: span.view(row[span.dtype]) for name, span in self.spans.items()}

    def integers(self, number: int) -> dict[str, Tensor]:
        """What a model counts: its persistent buffers that are not floating; the buffers themselves."""
        state = self.models[number].state_dict(keep_vars=True)
        return {name: tensor for name, tensor in state.items() if not tensor.is_floating_point()}

    def _move(self, model: nn.Module, row: int) -> None:
        state = model.state_dict(keep_vars=True)
        for name, span in self.spans.items():
            view = span.view(self.rows[span.dtype][row])
            view.copy_(state[name].detach())
            state[name].data = view


def _lay_out(model: nn.Module) -> tuple[dict[str, Span], dict[torch.dtype, int], dict[torch.dtype, int]]:
    """Spans by name, and how many elements parameters and everything take, by dtype."""
    floating = {name: t for name, t in model.state_dict(keep_vars=True).items() if t.is_floating_point()}
    parameters = {name: t for name, t in floating.items() if isinstance(t, nn.Parameter)}
    spans: dict[str, Span] = {}
    sizes = dict.fromkeys((t.dtype for t in floating.values()), 0)
    _append(parameters, spans, sizes, set())
    num_parameters = dict(sizes)
    _append({n: t for n, t in floating.items() if n not in parameters}, spans, sizes, set())
    return spans, num_parameters, sizes


def _append(
    tensors: Mapping[str, Tensor], spans: dict[str, Span], sizes: dict[torch.dtype, int], seen: set[int]
) -> None:
    for name, tensor in tensors.items():
        if id(tensor) in seen:  # tied: one object under two names
            continue
        seen.add(id(tensor))
        spans[name] = Span(tensor.dtype, sizes[tensor.dtype], tensor.shape)
        sizes[tensor.dtype] += -(-tensor.numel() // ALIGN) * ALIGN
