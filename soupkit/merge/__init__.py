"""Merging, which needs no data; called as a function it is `soupkit.api.merge`, which see.

soupkit.merge(["runs/a", "runs/b"], out="soups/uniform", method="uniform")
"""

from importlib import import_module
from sys import modules
from types import ModuleType


class _CallableModule(ModuleType):
    """`soupkit.merge` is this package and the function of the Python interface: Python keeps one name for
    both."""

    def __call__(self, *arguments: object, **options: object) -> object:
        return import_module("soupkit.api").merge(*arguments, **options)


modules[__name__].__class__ = _CallableModule
