"""Whose re-ordering of units keeps a network's function: soupkit's, rebasin's or Torch-Pruning's; and in what
time.

    python tests/benchmarks/align_rivals.py --rebasin PYTHON --torch-pruning PYTHON [--seconds 120] [MODEL…]

A rival lives in an environment of its own (`pip install timm open_clip_torch rebasin`, or `torch-pruning`),
whose interpreter runs this file; soupkit is the one of this interpreter. All see the same random weights, no
gain or statistic at a special value, in float64 on one thread. A cell: whether the function is kept with all
groups permuted at random at once (relative change); the groups, of which so many keep it alone; the share of
parameters in tensors that moved; the seconds to derive the groups and permute, for soupkit also those of its
proof. Of rebasin: the change by its own `rebasin()`, and by a random permutation when its
`recalculate_batch_norms` runs before and after ("repaired").
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

CONVOLUTIONS = "resnet18 resnet50 vgg11_bn densenet121 mobilenetv2_050 efficientnet_b0 convnext_atto"
OTHERS = "mixer_s32_224 vit_tiny_patch16_224 swin_tiny_patch4_window7_224 open_clip:ViT-B-32"
SIZES = {"swin_tiny_patch4_window7_224": 112, "open_clip:ViT-B-32": 224}
DEFAULT_SIZE = 64
TOLERANCE = 1e-10
Inputs = tuple[Tensor, ...]


class Derived(NamedTuple):
    """What a tool found: `permute` moves some groups at random, `more` is tried as well, `repair` follows a
    move."""

    num_groups: int
    permute: Callable[[Collection[int]], Any]
    more: Mapping[str, Callable[[], Any]] = {}
    repair: Callable[[], Any] | None = None
    note: str = ""


def with_soupkit(model: nn.Module, inputs: Inputs, _: nn.Module) -> Derived:
    """`permutation_spec`; the proof comes with its negative controls."""
    from soupkit.align.graph.trace import permutation_spec
    from soupkit.align.graph.trial import permuted_state
    from soupkit.align.graph.verify import moving_permutation, verify

    spec = permutation_spec(model, inputs)
    names = list(spec.groups)

    def permute(chosen: Collection[int]) -> None:
        permutation = moving_permutation(spec, 0, groups=[names[number] for number in chosen])
        model.load_state_dict(permuted_state(model.state_dict(), spec, permutation), strict=False)

    return Derived(len(names), permute, {"proof": lambda: verify(model, spec, inputs)})


def with_rebasin(model: nn.Module, inputs: Inputs, other: nn.Module) -> Derived:
    """`PermutationCoordinateDescent`; subclasses that its table of layers lacks are added where it fails for
    them."""
    from rebasin import PermutationCoordinateDescent, modules
    from rebasin.utils import recalculate_batch_norms

    given, note = inputs if len(inputs) > 1 else inputs[0], ""
    try:
        descent = PermutationCoordinateDescent(other, model, given)
    except KeyError as error:
        note, known = f"after KeyError: {error}", list(modules.SPECIAL_MODULES.items())
        found = {
            type(layer): kind for layer in model.modules() for base, kind in known if isinstance(layer, base)
        }
        modules.SPECIAL_MODULES.update(found)
        descent = PermutationCoordinateDescent(other, model, given)
    permutations = [permutation for permutation, _ in descent.pinit.model_graph.permutation_to_info]

    def permute(chosen: Collection[int]) -> None:
        for number, permutation in enumerate(permutations):
            size = len(permutation)
            permutation.perm_indices = torch.randperm(size) if number in chosen else torch.arange(size)
        descent.apply_permutations()

    def match() -> None:
        permute(())
        descent.rebasin()

    def repair() -> None:
        recalculate_batch_norms(model, [inputs[0]], 0, None, verbose=False)

    has_statistics = any(name.endswith("running_var") for name in model.state_dict())
    return Derived(len(permutations), permute, {"rebasin()": match}, repair if has_statistics else None, note)


def with_torch_pruning(model: Any, inputs: Inputs, _: nn.Module) -> Derived:
    """`get_all_groups` with classifier, outputs and heads treated as its pruner and examples treat them."""
    import torch_pruning

    ignored = [model.get_classifier()] if hasattr(model, "get_classifier") else []
    heads = {m.qkv: m.num_heads for m in model.modules() if hasattr(m, "qkv") and hasattr(m, "num_heads")}
    heads |= {m: m.num_heads for m in model.modules() if isinstance(m, nn.MultiheadAttention)}
    graph = torch_pruning.DependencyGraph().build_dependency(model, inputs, verbose=False)
    is_out, groups = graph.is_out_channel_pruning_fn, []
    for group in graph.get_all_groups(ignored_layers=ignored):
        own_heads = [heads[dep.layer] for dep, _ in group if dep.layer in heads and is_out(dep.handler)]
        readers = [
            item for item in group if isinstance(item.dep.layer, nn.Linear) and not is_out(item.dep.handler)
        ]
        if (
            own_heads and readers
        ):  # as BasePruner does: what reads the heads names the channels of Q, K, V alike
            group = graph.get_pruning_group(readers[-1].dep.layer, readers[-1].dep.handler, readers[-1].idxs)
        if all(type(dep.layer).__name__ != "_OutputOp" for dep, _ in group):
            groups.append((group, max(own_heads, default=1)))

    def permute(chosen: Collection[int]) -> None:
        for number in chosen:
            move_group(*groups[number], is_out)

    return Derived(len(groups), permute)


def move_group(group: Any, num_heads: int, is_out: Callable[[Any], bool]) -> None:
    """Permute, within heads, the root's channels that have as many places in every member, and all those
    places."""
    size = len(group[0].idxs)
    places: list[dict[int, list[int]]] = [defaultdict(list) for _ in group]
    alike: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for item, found in zip(group, places):
        for place, channel in zip(item.idxs, item.root_idxs):
            found[channel].append(place)
    for channel in range(size):
        alike[channel * num_heads // size, *(len(found[channel]) for found in places)].append(channel)
    source: dict[int, int] = {}
    for same in alike.values():
        source.update(zip(same, [same[k] for k in torch.randperm(len(same))]))
    for item, found in zip(group, places):
        pairs = [pair for new, old in source.items() for pair in zip(found[new], found[old])]
        for tensor, axis, offset in tensors_of(item.dep, is_out(item.dep.handler)):
            order = torch.arange(tensor.shape[axis])
            order[[offset + new for new, _ in pairs]] = torch.tensor([offset + old for _, old in pairs])
            tensor.data = tensor.data.index_select(axis, order)


def tensors_of(dep: Any, out: bool) -> list[tuple[Tensor, int, int]]:
    """The (tensor, axis, first position) that Torch-Pruning's function for a member would prune."""
    layer = dep.layer
    if isinstance(layer, nn.Parameter):
        return [(layer, dep.target.pruning_dim, 0)]
    if isinstance(layer, nn.MultiheadAttention):
        stacked = [(layer.in_proj_weight, 0), (layer.in_proj_bias, 0)]
        whole = [(layer.in_proj_weight, 1), (layer.out_proj.weight, 0), (layer.out_proj.weight, 1)]
        parts = [(*pair, part * layer.embed_dim) for pair in stacked for part in range(3)]
        return [*parts, *((*pair, 0) for pair in whole), (layer.out_proj.bias, 0, 0)]
    axis = 1 if isinstance(layer, nn.Embedding) or not out else 0
    found = [getattr(layer, name, None) for name in ("weight", "bias", "running_mean", "running_var")]
    return [(tensor, axis, 0) for tensor in found if isinstance(tensor, Tensor) and tensor.ndim > axis]


TOOLS = {"soupkit": with_soupkit, "rebasin": with_rebasin, "torch-pruning": with_torch_pruning}


def build(name: str, seed: int) -> tuple[nn.Module, Inputs]:
    """A model in float64 and eval mode, with random weights that have no special values, and an input."""
    try:
        import torchvision  # noqa: F401
    except RuntimeError:  # one built for another torch, without whose operators it cannot be imported
        for operator in ("nms", "qnms"):
            torch.library.define(f"torchvision::{operator}", "(Tensor a, Tensor b, float c) -> Tensor")
    torch.manual_seed(seed)
    size = SIZES.get(name, DEFAULT_SIZE)
    inputs: Inputs = (torch.randn(2, 3, size, size).double(),)
    if name.startswith("open_clip:"):
        import open_clip

        model = open_clip.create_model(name.removeprefix("open_clip:"))
        inputs += (torch.randint(1, 1000, (2, 77)),)
    else:
        import timm

        model = timm.create_model(name, pretrained_cfg_overlay={"input_size": (3, size, size)})
    model = model.double().eval()
    for key, tensor in model.state_dict().items():
        noise = torch.randn(tensor.shape).double()
        if key.endswith("running_var"):
            tensor.copy_(0.5 + noise.tanh().abs())
        elif tensor.is_floating_point():
            tensor.add_(noise, alpha=0.3 * (float(tensor.std()) if tensor.ndim > 1 else 1) or 0.02)
    return model, inputs


def outputs(model: nn.Module, inputs: Inputs) -> list[Tensor]:
    """What the model computes."""
    with torch.no_grad():
        found = model(*inputs)
    return [found] if isinstance(found, Tensor) else list(found)


def attempt(model: nn.Module, inputs: Inputs, move: Callable[[], Any]) -> dict[str, Any]:
    """Do something to a model and undo it: its seconds, and how much it changed the function, of which
    parameters."""
    saved, reference = (
        {key: tensor.clone() for key, tensor in model.state_dict().items()},
        outputs(model, inputs),
    )
    start = time.perf_counter()
    try:
        move()
        seconds, found = time.perf_counter() - start, outputs(model, inputs)
        error = max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(found, reference))
        moved = [not torch.equal(parameter, saved[name]) for name, parameter in model.named_parameters()]
        sizes = [parameter.numel() for parameter in model.parameters()]
        share = sum(size for size, one in zip(sizes, moved) if one) / sum(sizes)
        return {"error": error, "seconds": seconds, "share": share}
    except Exception as error:
        return {"error": float("inf"), "crash": f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"}
    finally:
        model.load_state_dict(saved)


def study(tool: str, name: str) -> Iterator[dict[str, Any]]:
    """All groups at once, then whatever else the tool offers, then each group alone."""
    small = [nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4)).double().eval() for _ in range(2)]
    TOOLS[tool](
        small[0], (torch.randn(2, 4).double(),), small[1]
    )  # loads whatever is only loaded when it is needed
    (model, inputs), (other, _) = build(name, 0), build(name, 1)
    start = time.perf_counter()
    derived = TOOLS[tool](model, inputs, other)
    seconds = time.perf_counter() - start
    everything = range(derived.num_groups)
    yield {"groups": derived.num_groups, "note": derived.note, "derive": seconds}
    yield attempt(model, inputs, partial(derived.permute, everything))
    if derived.repair is not None:
        repair, saved = derived.repair, {key: tensor.clone() for key, tensor in model.state_dict().items()}
        repair()
        yield {"repaired": attempt(model, inputs, lambda: (derived.permute(everything), repair()))}
        model.load_state_dict(saved)
    for key, move in derived.more.items():
        yield {key: attempt(model, inputs, move)}
    if tool != "soupkit":
        errors = [attempt(model, inputs, partial(derived.permute, [k]))["error"] for k in everything]
        yield {"alone": sum(error <= TOLERANCE for error in errors)}


def work(tool: str, name: str) -> None:
    """After each stage, one JSON line of all that is known of a tool and a model."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    stdout, row = sys.stdout, dict[str, Any]()
    with contextlib.redirect_stdout(sys.stderr):
        for found in study(tool, name):
            row |= found
            print(json.dumps(row), file=stdout, flush=True)


def ask(python: str, tool: str, name: str, limit: float) -> dict[str, Any]:
    """Run this file in an environment and read its last line; what was not found in time is left out."""
    command, environment = [python, __file__, "--worker", tool, name], os.environ | {"OMP_NUM_THREADS": "1"}
    try:
        done = subprocess.run(command, capture_output=True, timeout=limit, env=environment)
        out, problem = done.stdout, done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
    except subprocess.TimeoutExpired as late:
        out, problem = late.stdout or b"", "timeout"
    row = json.loads(out.splitlines()[-1]) if out else {}
    return row if "error" in row else row | {"crash": problem}


def cell(row: dict[str, Any]) -> str:
    """What to say of a tool and a model."""
    groups = (
        f"{row['alone']} of {row['groups']} groups" if "alone" in row else f"{row.get('groups', 'no')} groups"
    )
    if "crash" in row:
        return f"{row['crash']}; {groups}"
    kept = "no" if not row["error"] <= TOLERANCE else "yes" if row["share"] else "nothing moved"
    parts = [
        f"{kept} ({row['error']:.0e})",
        groups,
        f"{row['share']:.1%}",
        f"{row['derive'] + row['seconds']:.1f} s",
    ]
    parts += [f"proof {row['proof']['seconds']:.1f} s"] if "proof" in row else []
    parts += [f"{key} {row[key]['error']:.0e}" for key in ("repaired", "rebasin()") if key in row]
    return "; ".join([*parts, *([row["note"]] if row["note"] else [])])


def main() -> None:
    """Ask every tool about every model, and print a row for each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="*", default=[*CONVOLUTIONS.split(), *OTHERS.split()])
    parser.add_argument(
        "--rebasin", metavar="PYTHON", help="an interpreter in whose environment rebasin is installed"
    )
    parser.add_argument("--torch-pruning", metavar="PYTHON", help="the same of Torch-Pruning")
    parser.add_argument("--seconds", type=float, default=120, help="for one model and tool")
    parser.add_argument("--worker", choices=TOOLS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        return work(options.worker, *options.models)
    pythons = {"soupkit": sys.executable, "rebasin": options.rebasin, "torch-pruning": options.torch_pruning}
    tools = [tool for tool, python in pythons.items() if python]
    print(f"| model | {' | '.join(tools)} |\n|{'---|' * (len(tools) + 1)}", flush=True)
    for name in options.models:
        cells = [cell(ask(pythons[tool], tool, name, options.seconds)) for tool in tools]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)
    return None


if __name__ == "__main__":
    main()
