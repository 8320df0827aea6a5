"""`Mixture`: a linear soup, which is nothing but its coefficients.

Shape suffixes: K ingredients, B blocks.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from soupkit.errors import RecipeError
from soupkit.jsons import Json, JsonView

BATCH_NORM_STATISTICS = ("running_mean", "running_var")


@dataclass(frozen=True)
class Mixture:
    """w_b = Σ_k coefficients[k, b] · w_{k,b} / divisor for every block b of tensors.

    The divisor is apart so that a mean is one exact sum and one division: 1/K is not a binary number, and
    multiplying by it would round every ingredient. blocks maps tensor names to columns; names that it does
    not hold, and every name when it is empty, take column 0.
    """

    ingredients: tuple[str, ...]
    coefficients: NDArray[np.float64]
    divisor: float = 1.0
    blocks: Mapping[str, int] | None = None

    def __post_init__(self) -> None:
        assert self.coefficients.ndim == 2
        assert self.coefficients.shape[0] == len(self.ingredients)
        if not np.isfinite(self.coefficients).all() or not np.isfinite(self.divisor) or self.divisor == 0:
            raise RecipeError("the coefficients of a mixture must be finite numbers and the divisor not zero")

    def column(self, name: str) -> NDArray[np.float64]:
        """The K coefficients of the block that tensor `name` lies in."""
        block = self.blocks.get(name, 0) if self.blocks else 0
        column: NDArray[np.float64] = self.coefficients[:, block]
        return column

    @property
    def matrix(self) -> NDArray[np.float64]:
        """The K × B effective coefficients, with the divisor applied."""
        matrix: NDArray[np.float64] = self.coefficients / self.divisor
        return matrix

    def used(self) -> list[int]:
        """The ingredients with a coefficient other than zero anywhere."""
        return [int(k) for k in np.flatnonzero(np.any(self.coefficients != 0, axis=1))]

    def select(self, rows: Sequence[int]) -> Mixture:
        """The mixture of only these ingredients, in this order."""
        names = tuple(self.ingredients[row] for row in rows)
        return Mixture(names, self.coefficients[list(rows)], self.divisor, self.blocks)

    def to_json(self) -> Json:
        """JSON-able values: enough to build the mixture again, bit for bit (floats print with 17 digits)."""
        return {
            "ingredients": list(self.ingredients),
            "coefficients": self.coefficients.tolist(),
            "divisor": self.divisor,
            "blocks": dict(self.blocks) if self.blocks else None,
        }

    @classmethod
    def from_json(cls, values: JsonView) -> Mixture:
        """The mixture that `to_json` described. Raises RecipeError for values that describe none."""
        try:
            coefficients = np.asarray(values["coefficients"], np.float64)
            names = tuple(map(str, values["ingredients"]))
            if coefficients.ndim != 2 or len(coefficients) != len(names):
                raise ValueError(f"{len(names)} ingredients, coefficients of shape {coefficients.shape}")
            return cls(names, coefficients, float(values["divisor"]), values.get("blocks"))
        except (KeyError, TypeError, ValueError) as error:
            raise RecipeError(f"a mixture cannot be read: {error!r}") from error


def uniform(ingredients: Sequence[str]) -> Mixture:
    """The mean: Σ_k w_k / K (Wortsman et al. 2022, arXiv:2203.05482, §2)."""
    return Mixture(tuple(ingredients), np.ones((len(ingredients), 1)), float(len(ingredients)))


def weighted(
    ingredients: Sequence[str], coefficients: Sequence[float], *, normalize: bool = False
) -> Mixture:
    """Σ_k c_k w_k, or divided by Σ_k c_k. Raises RecipeError when there is not one coefficient per
    ingredient."""
    if len(coefficients) != len(ingredients):
        raise RecipeError(
            f"{len(coefficients)} coefficients for {len(ingredients)} checkpoints",
            hint="give one coefficient per checkpoint, in the order of the references",
        )
    column = np.asarray(coefficients, np.float64)[:, None]
    return Mixture(tuple(ingredients), column, float(column.sum()) if normalize else 1.0)


def by_tensor(
    ingredients: Sequence[str], columns: Mapping[str, Sequence[float]], *, normalize: bool = False
) -> Mixture:
    """Σ_k c_k w_k with coefficients of its own for every tensor; each column divided by its sum when
    normalized.

    Raises RecipeError for a column that sums to zero and cannot be divided.
    """
    blocks: dict[tuple[float, ...], int] = {}
    places = {name: blocks.setdefault(tuple(column), len(blocks)) for name, column in columns.items()}
    matrix = np.array(list(blocks), np.float64).T
    if normalize:
        sums = matrix.sum(axis=0)
        if (sums == 0).any():
            raise RecipeError(
                "coefficients sum to zero and cannot be normalized", hint="leave --normalize out"
            )
        matrix = matrix / sums
    return Mixture(tuple(ingredients), matrix, 1.0, places)


def interpolate(a: str, b: str, at: float) -> Mixture:
    """(1 − at)·A + at·B (WiSE-FT: Wortsman et al. 2022, arXiv:2109.01903, eq. 1)."""
    return Mixture((a, b), np.array([[1.0 - at], [at]]))


def subset_mean(ingredients: Sequence[str], picks: Sequence[int]) -> Mixture:
    """The mean of the picked ingredients, zero for the others: what a greedy soup is."""
    coefficients = np.zeros((len(ingredients), 1))
    coefficients[list(picks)] = 1.0
    return Mixture(tuple(ingredients), coefficients, float(len(picks)))


def keep_batch_norm(mixture: Mixture, row: int, names: Iterable[str]) -> Mixture:
    """The same mixture of the tensors `names`, but with the batch-norm statistics of ingredient `row`
    alone."""
    assert mixture.blocks is None
    assert mixture.coefficients.shape[1] == 1
    statistics = [name for name in names if name.rpartition(".")[2] in BATCH_NORM_STATISTICS]
    if not statistics:
        return mixture
    only = np.zeros((len(mixture.ingredients), 1))
    only[row] = mixture.divisor
    coefficients = np.hstack([mixture.coefficients, only])
    return Mixture(mixture.ingredients, coefficients, mixture.divisor, dict.fromkeys(statistics, 1))
