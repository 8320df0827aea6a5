"""What is learned and scored is known to `soupkit.task` alone: nothing else names what only images have."""

import ast
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "soupkit"
WORDS = ("logits", "class_names", "cross_entropy", "zeroshot", "zero_shot", "pixels", "mixup", "smoothing")
OTHER_MEANING = {
    "align/graph/rules_shape.py",  # neighbours that become channels
    "report/html_charts.py",  # of a picture in a page
    "soup/learned.py",  # of coefficients
}
OPTIONS = ("recipe", "asked.py")
"""What a user says of images: recipes are read without torch, so they lie below the tasks."""


def names(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        for field in ("id", "attr", "arg", "name", "module"):
            if isinstance(value := getattr(node, field, None), str):
                yield value.lower()


def test_only_tasks_know_what_images_and_classes_are() -> None:
    found = {
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*.py")
        if path.relative_to(PACKAGE).parts[0] not in ("task", *OPTIONS)
        and any(word in name for name in names(ast.parse(path.read_text(encoding="utf-8"))) for word in WORDS)
    }
    assert found == OTHER_MEANING
