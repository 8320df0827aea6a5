"""From a module to its permutation groups: its graph is exported, and axes are followed through it.

torch.export gives ATen's operations with shapes; `rules` says what each does to the order of positions;
`groups` reads the groups off the parameters' axes. Nothing is computed, so it takes seconds.
"""

from __future__ import annotations

import operator
import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch.export.graph_signature import InputKind
from torch.fx import config as fx_config
from torch.utils._pytree import tree_leaves

from soupkit.align.graph import rules_linear, rules_pointwise, rules_select, rules_shape  # noqa: F401  (they fill the table)
from soupkit.align.graph.axes import Symbol, pin
from soupkit.align.graph.groups import build_spec
from soupkit.align.graph.rules import Axes, Call, follow, tensors_in
from soupkit.align.spec import PermutationSpec
from soupkit.errors import AlignError

INNER_GRAPHS = ("wrap_with_autocast", "wrap_with_set_grad_enabled")
"""Operations that do no more than to run a graph of their own."""
TRACES = "do_not_emit_stack_traces"
"""A setting of newer torch. The lines of source that nodes come from take a fifth of the time; nobody reads
them."""


def permutation_spec(
    model: torch.nn.Module, inputs: tuple[torch.Tensor, ...], *, pin: Iterable[str] = ()
) -> PermutationSpec:
    """The permutation groups of a model in eval mode: for every tensor of its state dict, what may move
    together.

    Sound by construction as far as the rules are right; `align.graph.verify` checks it. What cannot be
    followed is pinned, with the reason. inputs: an example; only its shapes and dtypes matter. pin: see
    PermutationSpec.pin. Memory: the graph, no weights. Raises AlignError when the model is in training mode
    or torch.export cannot trace it.
    """
    if model.training:
        raise AlignError(
            "the network is in training mode, expected eval mode", hint="call model.eval() first"
        )
    follower = Follower(model, inputs)
    spec = build_spec(
        follower.state_axes(), notes={"gave_up": follower.gave_up, "operations": follower.operations}
    )
    return spec.pin(pin) if (pin := tuple(pin)) else spec


def export(model: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> torch.export.ExportedProgram:
    """The graph of a model. Raises AlignError with torch.export's own words."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # one fused operation would hide the heads
    without_traces = getattr(fx_config, TRACES, None)
    try:
        if without_traces is not None:
            setattr(fx_config, TRACES, True)
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            return torch.export.export(model, inputs, strict=False)
    except Exception as error:  # whatever the model's own code raises under tracing
        words = (str(error).splitlines() or [""])[0]
        raise AlignError(
            f"{type(model).__name__} cannot be exported: {type(error).__name__}: {words}",
            hint="groups are read off torch.export's graph; a model that it cannot trace cannot be aligned",
        ) from error
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        if without_traces is not None:
            setattr(fx_config, TRACES, without_traces)


class Follower:
    """Follows axes through the exported graph of a model.

    gave_up: operations that no rule covers, or whose rule met a case that it does not know.
    """

    def __init__(self, model: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        self.state = model.state_dict(keep_vars=True)
        self.program = export(model, inputs)
        self.gave_up: list[str] = []
        self.operations: list[str] = []
        self._axes: dict[tuple[object, ...], Axes] = {}
        self._values: dict[torch.fx.Node, object] = {}
        self._inputs = {spec.arg.name: spec for spec in self.program.graph_signature.input_specs}
        self._run(self.program.graph_module)
        self.operations = sorted(set(self.operations))

    def state_axes(self) -> dict[str, Axes]:
        """The axes of every tensor of the state dict; those that the graph does not use are pinned."""
        return {
            name: self._axes.get(_identity(name, tensor))
            or Axes(Symbol(length, "no part of what the network computes") for length in tensor.shape)
            for name, tensor in self.state.items()
        }

    def _run(self, module: torch.fx.GraphModule, given: Sequence[object] | None = None) -> object:
        """Follow a graph; `given`: the operands of an inner one, whose results are returned."""
        placeholders = iter(given or ())
        for node in module.graph.nodes:
            if node.op == "placeholder":
                self._values[node] = self._placeholder(node) if given is None else next(placeholders)
            elif node.op == "get_attr":
                self._values[node] = getattr(module, str(node.target))
            elif node.op == "call_function":
                self._values[node] = self._call(node)
            elif given is not None:
                return self._value(node.args[0])
            else:
                for leaf in tree_leaves(node.args):
                    self._pin(leaf, "output of the network")
        return None

    def _placeholder(self, node: torch.fx.Node) -> Axes | None:
        value = node.meta.get("val")
        if not isinstance(value, torch.Tensor):
            return None
        spec = self._inputs[node.name]
        if spec.kind is InputKind.USER_INPUT:
            return Axes(Symbol(length, "input of the network") for length in value.shape)
        target = spec.target or ""
        if not node.users:
            return None
        # By identity, not by name: tied parameters are one tensor, which can have one order only.
        if target in self.state and value.is_floating_point():
            return self._axes.setdefault(
                _identity(target, self.state[target]), Axes(Symbol(length) for length in value.shape)
            )
        if target in self.state:
            return Axes(Symbol(length, "integers") for length in value.shape)
        return _constant(self.program.constants.get(target), value)

    def _call(self, node: torch.fx.Node) -> object:
        if node.target is operator.getitem:
            found, number = (self._value(argument) for argument in node.args)
            return found[number] if isinstance(found, list) else None
        if str(node.target) in INNER_GRAPHS:
            operands = [self._value(argument) for argument in node.args]
            # Whatever comes before the inner graph (a flag, a context) is none of its operands.
            place = next(k for k, operand in enumerate(operands) if isinstance(operand, torch.fx.GraphModule))
            return self._run(operands[place], operands[place + 1 :])
        shapes = _shapes(node.meta.get("val"))
        name = str(getattr(node.target, "_schema", node.target)).partition("(")[0]
        base = name.split("::")[-1].partition(".")[0]
        call = Call(
            # add_ goes by the rule of add; __and__ is a name.
            base if base.endswith("__") else base.rstrip("_"),
            self._arguments(node),
            shapes,
            f"{base} in {_module(node)}",
            in_place=base.endswith("_") or base == "copy_",
            gave_up=self.gave_up,
        )
        self.operations.append(call.name)
        return follow(call)

    def _arguments(self, node: torch.fx.Node) -> dict[str, object]:
        schema = getattr(node.target, "_schema", None)
        names = [argument.name for argument in schema.arguments] if schema is not None else []
        # An operation without a schema takes its arguments by their places.
        names += [f"argument {number}" for number in range(len(names), len(node.args))]
        given = dict(zip(names, node.args, strict=False)) | dict(node.kwargs)
        defaults = (
            {a.name: a.default_value for a in schema.arguments if a.has_default_value()} if schema else {}
        )
        return {name: self._value(value) for name, value in {**defaults, **given}.items()}

    def _value(self, argument: object) -> Any:
        if isinstance(argument, torch.fx.Node):
            found = self._values.get(argument)
            return argument.meta.get("val") if found is None else found
        if isinstance(argument, list | tuple):
            return [self._value(value) for value in argument]
        return argument

    def _pin(self, leaf: object, reason: str) -> None:
        if isinstance(leaf, torch.fx.Node):
            for axes in tensors_in([self._values.get(leaf)]):
                for axis in axes:
                    pin(axis, reason)


def _constant(tensor: torch.Tensor | None, value: torch.Tensor) -> Axes:
    """A tensor that no checkpoint changes: where it is constant along an axis, any order is right."""
    if tensor is None or tensor.device.type == "meta":
        return Axes(Symbol(length, "a constant of the network") for length in value.shape)
    return Axes(
        Symbol(length, loose=True)
        if bool((tensor == tensor.narrow(number, 0, 1)).all())
        else Symbol(length, "a constant of the network")
        for number, length in enumerate(value.shape)
    )


def _shapes(value: object) -> object:
    """Sizes of what an operation returns. Raises AlignError where they depend on data."""
    if isinstance(value, torch.Tensor):
        if not all(isinstance(length, int) for length in value.shape):
            raise AlignError(
                "the shapes inside the network depend on its data; such a network cannot be followed"
            )
        return tuple(value.shape)
    if isinstance(value, list | tuple):
        return [_shapes(one) for one in value]
    return None


def _module(node: torch.fx.Node) -> str:
    """The path of the module that an operation belongs to."""
    stack = node.meta.get("nn_module_stack") or {}
    paths = [path for path, _ in stack.values() if path]
    return str(paths[-1]) if paths else "the network itself"


def _identity(name: str, tensor: torch.Tensor) -> tuple[object, ...]:
    """What tied tensors have in common."""
    if tensor.numel() == 0 or tensor.device.type == "meta":
        return (name,)
    return (tensor.data_ptr(), tuple(tensor.shape), tensor.stride())
