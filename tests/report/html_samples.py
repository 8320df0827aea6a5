"""Records as the commands write them, and a reader of pages that trusts nothing of the writer."""

from __future__ import annotations

from dataclasses import dataclass, field
from html.parser import HTMLParser
from typing import Any

VOID = {"meta", "img"}
HOSTILE = (
    "<script>alert(1)</script>\"'&amp; \u202egnp.exe \u05e9\u05dc\u05d5\u05dd \x00\x1b[31m "
    "\ud800 </style></title>"
)


def score(value: float, error: float | None = 0.004, num: int | None = 700) -> dict[str, Any]:
    return {"value": value, "standard_error": error, "num_examples": num}


def both(held_out: float, test: float) -> dict[str, Any]:
    return {
        "held_out": {"top1": score(held_out), "nll": score(0.2, 0.03)},
        "test": {"top1": score(test, 0.0051, 797), "nll": score(0.3, 0.02, 797)},
    }


def inputs(*references: str) -> list[dict[str, Any]]:
    return [
        {"reference": ref, "path": f"../{ref}", "content": f"xxh3-128:{n:032x}"}
        for n, ref in enumerate(references)
    ]


def manifest(command: str, recipe: dict[str, Any] | None = None, **parts: Any) -> dict[str, Any]:
    return {
        "command": command,
        "recipe": recipe or {},
        "inputs": [],
        "outputs": {},
        "metrics": {},
        "mixture": None,
        "trace": [],
        "notes": {},
        "format": 1,
        "soupkit": "0.1.0",
        "versions": {"python": "3.11.7", "numpy": "2.4.6"},
        "created": "2026-11-21T00:40:00+00:00",
    } | parts


def greedy() -> dict[str, Any]:
    names = ["sweep/a", "sweep/b", "sweep/c", "sweep/d"]
    return manifest(
        "merge greedy",
        {"refs": ["sweep"], "out": "greedy", "data": "digits", "metric": "top1", "early_stop": False},
        inputs=inputs(*names),
        metrics=both(0.9857, 0.9787),
        mixture={
            "ingredients": names,
            "coefficients": [[0.0], [1.0], [1.0], [0.0]],
            "divisor": 2.0,
            "blocks": None,
        },
        trace=[
            {"ingredient": "sweep/b", "accepted": True, "single": True, "value": 0.96},
            {
                "ingredient": "sweep/a",
                "accepted": False,
                "value": 0.95,
                "stopped": False,
                "num_evaluated": 700,
            },
            {
                "ingredient": "sweep/c",
                "accepted": True,
                "value": 0.98,
                "stopped": False,
                "num_evaluated": 700,
            },
            {"ingredient": "sweep/d", "accepted": False, "value": None, "stopped": True, "num_evaluated": 32},
        ],
        notes={
            "picks": ["sweep/b", "sweep/c"],
            "singles": {name: {"metric": "top1", **score(0.9 + n / 100)} for n, name in enumerate(names)},
            "share_of_trial_examples_evaluated": 0.132,
        },
        outputs={"content": "xxh3-128:aa", "files": {"model.safetensors": {"bytes": 1_510_944}}},
    )


def sweep() -> dict[str, Any]:
    members = {"run-000": both(0.96, 0.99), "run-001": both(0.98, 0.95), "run-002": both(0.97, 0.96)}
    settings = {name: {"lr": 0.001 * (n + 1), "epochs": 8} for n, name in enumerate(members)}
    notes = {"members": list(members), "hyper_parameters": settings}
    recipe = {"base": "base", "out": "sweep", "data": "digits"}
    return manifest("finetune-sweep", recipe, inputs=inputs("base"), metrics=members, notes=notes)


def learned() -> dict[str, Any]:
    rows = [[-0.5, 0.25, 0.0, 1.0], [1.5, 0.75, 1.0, 0.0]]
    blocks = {f"layer.{n}.weight": n for n in range(4)}
    return manifest(
        "merge learned",
        {"refs": ["a", "b"], "out": "learned", "data": "digits"},
        inputs=inputs("a", "b"),
        metrics=both(0.97, 0.96),
        mixture={"ingredients": ["a", "b"], "coefficients": rows, "divisor": 1.0, "blocks": blocks},
        trace=[{"run": "all", "epoch": n, "loss": 1 / n} for n in range(1, 6)],
        notes={
            "temperature": 1.54,
            "uniform": both(0.9, 0.91),
            "data": {"data": "digits", "sizes": {"test": 797}},
        },
    )


def ensemble() -> dict[str, Any]:
    change = {
        "metric": "top1",
        "difference": 0.01,
        "standard_error": 0.01,
        "low": -0.01,
        "high": 0.03,
        "p_value": 0.2,
    }
    return manifest(
        "ensemble",
        {"refs": ["fge"], "data": "digits"},
        metrics={"best_single": both(0.95, 0.93), "logits": both(0.96, 0.94)},
        notes={"best_single": "fge/a", "comparisons": {"logits": {"test": change | {"num_examples": 797}}}},
    )


def fge() -> dict[str, Any]:
    epochs = [
        {"epoch": n, "error": {"held_out": 0.1 / n, "test": 0.2 / n}, "distance": n * 0.1}
        for n in range(1, 6)
    ]
    notes = {"members": ["snapshot-000"], "loss": [0.3, 0.2, 0.1], "epochs": epochs, "seconds": 3.6}
    return manifest(
        "fge", {"base": "base", "out": "fge", "data": "digits"}, inputs=inputs("base"), notes=notes
    )


def unknown() -> dict[str, Any]:
    notes = {
        "history": {"losses": [[1.0, 2.0]] * 5, "rates": [1.0, 0.5, 0.25, 0.1]},
        "corners": [[0.0, 1.0], [2.0, 3.0]],
        "projections": {"x": {"x": 1.0, "distance": 2.0}},
        "nested": {"a": {"b": {"c": [1, {"d": None}]}}},
        "text": "words",
    }
    return manifest("merge from-tomorrow", {"refs": ["a"], "strength": 0.5, "deep": {"x": [1]}}, notes=notes)


def path_scores() -> dict[str, Any]:
    found: dict[str, Any] = {"ts": [0.0, 0.5, 1.0]}
    for prefix in ("tr", "ho", "te"):
        found |= {f"{prefix}_{measure}": [1.0, 3.0, 2.0] for measure in ("loss", "nll", "err")}
        found |= {
            f"{prefix}_nll_se": [0.1, 0.1, 0.1],
            f"{prefix}_err_se": [0.1, 0.1, 0.1],
            f"{prefix}_n": 100,
        }
    return found


RECORDS = {
    "greedy": greedy,
    "sweep": sweep,
    "learned": learned,
    "ensemble": ensemble,
    "fge": fge,
    "unknown": unknown,
}


@dataclass
class Element:
    """One element of a parsed page."""

    name: str
    attributes: dict[str, str | None] = field(default_factory=dict)
    children: list[Element | str] = field(default_factory=list)

    @property
    def text(self) -> str:
        """All text inside."""
        return "".join(child if isinstance(child, str) else child.text for child in self.children)

    def all(self, *names: str) -> list[Element]:
        """Every element inside of these names, in the order of the page."""
        found = []
        for child in self.children:
            if isinstance(child, Element):
                found += ([child] if not names or child.name in names else []) + child.all(*names)
        return found

    def table(self, caption: str) -> list[list[str]]:
        """The cells of the table whose caption begins like this, head first."""
        (found,) = [each for each in self.all("table") if each.all("caption")[0].text.startswith(caption)]
        return [[cell.text for cell in row.all("th", "td")] for row in found.all("tr")]


class Reader(HTMLParser):
    """Builds elements; every end must close what was opened last."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.root = Element("")
        self.open = [self.root]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len({name for name, _ in attrs}) == len(attrs), f"an attribute is given twice: {attrs}"
        element = Element(tag, dict(attrs))
        self.open[-1].children.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop().name == tag

    def handle_data(self, data: str) -> None:
        self.open[-1].children.append(data)


def read(text: str) -> Element:
    """Parse a page."""
    reader = Reader()
    reader.feed(text)
    reader.close()
    assert len(reader.open) == 1, [element.name for element in reader.open]
    return reader.root
