"""What may be turned in a transformer: names propose, the network proves, and the function stays."""

from __future__ import annotations

import pytest
import torch
from task.small import FEW_WORDS
from torch import Tensor, nn

from soupkit.align.graph.trial import randomise
from soupkit.align.turns.proof import proved
from soupkit.align.turns.towers import Tower, check_names, towers_again, towers_of, towers_to_json
from soupkit.align.turns.turn import Turn, balanced, fold, heads, random_turn, turned
from soupkit.errors import AlignError
from soupkit.stages.alignment.examples import example_inputs
from soupkit.task.images.models import ModelSpec, build, parse_model

VIT = "timm:test_vit,num_classes=5,img_size=32,depth=2"
MODELS = {
    "class token": VIT,
    "layer scale, registers, average": f"{VIT},init_values=0.1,reg_tokens=2,global_pool=avg",
    "no biases": f"{VIT},qkv_bias=False,proj_bias=False,global_pool=avg",
    "norms of queries and keys": f"{VIT},qk_norm=True",
    "pooled by attention": "timm:test_vit3,num_classes=5,img_size=32,depth=2",
    "two towers": "open_clip",
}
CLIP = ModelSpec("open_clip", "ViT-B-32", config=FEW_WORDS)
ALL = ["stream", "qk", "vo"]
FREE = {name: {"transformer": ALL} for name in MODELS} | {
    "norms of queries and keys": {"transformer": ["stream", "vo"]},
    "two towers": {"transformer": ALL, "visual": ["qk", "vo"]},
}


def network(name: str) -> tuple[nn.Module, tuple[Tensor, ...]]:
    described = CLIP if name == "open_clip" else parse_model(name)
    model = build(described).eval()
    return model, example_inputs(model, described)


class Case:
    """A network with every tensor away from its special values, in float64."""

    def __init__(self, name: str) -> None:
        self.name = name
        torch.manual_seed(0)
        self.model, inputs = network(MODELS[name])
        randomise(self.model, 1)
        self.model.double()
        self.inputs = tuple(each.double() if each.is_floating_point() else each for each in inputs)
        self.towers = proved(self.model, self.inputs).towers
        self.tensors = {name: tensor.detach().clone() for name, tensor in self.model.state_dict().items()}

    def outputs(self, tensors: dict[str, Tensor]) -> Tensor:
        with torch.no_grad():
            found = torch.func.functional_call(self.model, tensors, self.inputs)
        parts = found if isinstance(found, tuple | list) else [found]
        return torch.cat([part.flatten() for part in parts])


@pytest.fixture(params=MODELS, scope="module")
def case(request: pytest.FixtureRequest) -> Case:
    return Case(request.param)


def test_what_holds_is_found(case: Case) -> None:
    assert {tower.name: tower.freedoms() for tower in case.towers} == FREE[case.name]


def test_every_step_keeps_the_function(case: Case) -> None:
    before = case.outputs(case.tensors)
    folded = fold(case.tensors, case.towers)
    assert torch.allclose(case.outputs(folded), before, rtol=1e-10, atol=1e-11)
    even = turned(folded, case.towers, balanced(folded, case.towers))
    assert torch.allclose(case.outputs(even), before, rtol=1e-10, atol=1e-11)
    other = turned(even, case.towers, random_turn(case.towers, even, 2))
    assert torch.allclose(case.outputs(other), before, rtol=1e-10, atol=1e-11)
    changed = [name for name in folded if not torch.allclose(other[name], folded[name])]
    assert len(changed) >= 4 * sum(len(tower.attentions) for tower in case.towers) // 2
    assert all(torch.equal(tensor, case.model.state_dict()[name]) for name, tensor in case.tensors.items())


def test_gains_and_key_biases_are_folded_away(case: Case) -> None:
    folded = fold(case.tensors, case.towers)
    for tower in case.towers:
        for norm in tower.stream.readers if tower.stream else ():
            assert bool((folded[f"{norm}.weight"] == 1).all())
        for attention in tower.attentions:
            if attention.maps_qk and attention.qkv.bias:
                assert not folded[attention.qkv.bias].chunk(3)[1].any()


def test_balanced_heads_are_the_shortest_equivalent_ones(case: Case) -> None:
    """Both Grams are equal, and any other map of the same head has a larger norm."""
    folded = fold(case.tensors, case.towers)
    even = turned(folded, case.towers, balanced(folded, case.towers))
    for attention in (each for tower in case.towers for each in tower.attentions):
        q, k, v, out = heads(even, attention)
        assert torch.allclose(v @ v.mT, out @ out.mT, atol=1e-10)
        if attention.maps_qk:
            assert torch.allclose(q @ q.mT, k @ k.mT, atol=1e-10)
            other = (
                torch.eye(q.shape[1], dtype=torch.float64)
                + 0.01 * torch.randn(q.shape[1], q.shape[1]).double()
            )
            moved = (other @ q).square().sum() + (torch.linalg.inv(other).T @ k).square().sum()
            assert moved > q.square().sum() + k.square().sum()


def test_turns_compose(case: Case) -> None:
    folded = fold(case.tensors, case.towers)
    first, then = (random_turn(case.towers, folded, seed) for seed in (3, 4))
    one_by_one = turned(turned(folded, case.towers, first), case.towers, then)
    at_once = turned(folded, case.towers, first.then(then))
    for name, tensor in one_by_one.items():
        assert torch.allclose(at_once[name], tensor, atol=1e-10), name
    again = Turn.from_arrays(first.then(then).to_arrays())
    assert all(torch.equal(turned(folded, case.towers, again)[name], at_once[name]) for name in at_once)


def test_what_was_found_is_found_again_from_its_record(case: Case) -> None:
    again = towers_again(case.tensors, towers_to_json(case.towers))
    kinds = [(tower.name, tower.freedoms(), tower.stream, tower.attentions) for tower in case.towers]
    assert [(tower.name, tower.freedoms(), tower.stream, tower.attentions) for tower in again] == kinds


def test_heads_of_zeros_stay_as_they_are() -> None:
    case = Case("class token")
    attention = case.towers[0].attentions[0]
    case.tensors[attention.out.weight].zero_()
    folded = fold(case.tensors, case.towers)
    maps = balanced(folded, case.towers).vo[attention.name]
    assert torch.equal(maps, torch.eye(maps.shape[1], dtype=torch.float64).expand_as(maps))


def test_a_gain_of_zero_with_a_shift_cannot_be_folded_without_a_bias() -> None:
    case = Case("two towers")
    case.tensors["ln_final.weight"][3] = 0
    with pytest.raises(AlignError, match="ln_final has gains of 0"):
        fold(case.tensors, case.towers)
    case.tensors["ln_final.bias"][3] = 0
    folded = fold(case.tensors, case.towers)
    assert torch.allclose(case.outputs(folded), case.outputs(case.tensors), rtol=1e-10, atol=1e-11)


def names_and_heads(name: str) -> tuple[set[str], dict[str, int]]:
    model, _ = network(name)
    heads = {name: module.num_heads for name, module in model.named_modules() if hasattr(module, "num_heads")}
    return set(model.state_dict()), heads


@pytest.mark.parametrize(
    ("model", "extra", "why"),
    [
        (VIT, "norm_pre.weight", "norm_pre writes its gains"),
        (VIT, "fc_norm.weight", "2 norms behind the last block"),
        ("open_clip", "visual.ln_pre.bias", "visual.ln_pre writes its gains"),
    ],
)
def test_why_a_stream_stays_is_said(model: str, extra: str, why: str) -> None:
    names, heads = names_and_heads(model)
    towers = towers_of({*names, extra}, heads)
    stays = [tower for tower in towers if tower.stream is None]
    assert [tower.freedoms() for tower in stays] == [["qk", "vo"]]
    assert why in stays[0].why


def test_a_network_without_classifier_keeps_its_stream() -> None:
    names, heads = names_and_heads(VIT)
    (tower,) = towers_of({name for name in names if not name.startswith("head")}, heads)
    assert (tower.stream, tower.why) == (None, "nothing known reads norm")


def test_other_networks_are_refused() -> None:
    names, heads = names_and_heads(VIT)
    check_names(names)
    check_names(names_and_heads("open_clip")[0])
    resnet = names_and_heads("timm:test_resnet,num_classes=5")[0]
    for strange in (resnet, {*names, "blocks.0.attn.relative_bias"}, {*names, "stem.weight"}):
        with pytest.raises(AlignError, match="no pre-norm vision transformer or CLIP"):
            towers_of(strange, heads)
        with pytest.raises(AlignError, match="no pre-norm vision transformer or CLIP"):
            check_names(strange)
    with pytest.raises(AlignError, match="no pre-norm"):
        towers_of(names, {})


def test_a_freedom_that_does_not_hold_is_given_up() -> None:
    """Names as they should be, a function as it should not: the stream is bent behind a block."""
    torch.manual_seed(0)
    model, inputs = network(VIT)
    model.blocks[0].register_forward_hook(lambda _module, _inputs, stream: stream.relu())
    (tower,) = proved(model, inputs).towers
    assert tower.freedoms() == ["qk", "vo"]
    assert "stream changes the outputs by" in tower.why


def test_a_tower_without_any_freedom_is_none() -> None:
    tower = Tower("t", None, ())
    assert tower.freedoms() == []
