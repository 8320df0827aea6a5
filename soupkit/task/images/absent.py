"""What the libraries behind timm's factory say when a data set has no split of a name."""

from __future__ import annotations


def has_no(split: str, error: BaseException | None) -> bool:
    """Whether a library says that the data set has no such split, which is no failure.

    datasets: `Unknown split "test". Should be one of [...]`; tensorflow-datasets: `Unknown split 'test'`;
    timm's wds reader: `split test not found in info`.
    """
    text = str(error)
    if isinstance(error, KeyError):
        return text.strip("'\"") == split
    return any(
        word in text.lower() for word in ("unknown split", "no such split", "no split", "not found in info")
    )
