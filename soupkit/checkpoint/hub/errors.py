"""What goes wrong between here and the Hugging Face Hub, in words that say what to do; and trying again."""

from __future__ import annotations

import errno
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event
from typing import TypeVar

from soupkit.errors import CheckpointError, OutputError, ReferenceError, SoupkitError

T = TypeVar("T")

NUM_TRIES = 6
LONGEST_WAIT = 60.0
TRANSIENT = (408, 429, 500, 502, 503, 504)
"""Answers after which the same request may succeed."""
INCOMPLETE = "Consistency check failed"
"""What huggingface_hub says of a download that ended early."""
_NETWORK_LIBRARIES = ("httpx", "httpx2", "httpcore", "httpcore2", "requests", "urllib3")


class Interrupted(Exception):
    """A body that ended before it was whole."""


def retried(call: Callable[[], T], *, num_tries: int = NUM_TRIES, stop: Event | None = None) -> T:
    """`call`, again and again while the network or the Hub fails for the moment: up to 6 tries, 1, 2, 4, … s
    apart.

    A `Retry-After` of the Hub is obeyed up to a minute; `stop` ends the waiting. The last failure is raised
    as it is.
    """
    for number in range(num_tries):
        try:
            return call()
        except Exception as error:
            if number == num_tries - 1 or not is_transient(error):
                raise
            if stop is None:
                time.sleep(_wait(error, number))
            elif stop.wait(_wait(error, number)):
                raise
    raise AssertionError


def is_transient(error: BaseException) -> bool:
    """Whether the same request may succeed a moment later."""
    error = _cause(error)
    status = _status(error)
    if status:
        return status in TRANSIENT
    return is_network(error) or isinstance(error, Interrupted) or INCOMPLETE in str(error)


def is_network(error: BaseException) -> bool:
    """Whether an error comes from the network and not from an answer of the Hub."""
    if _status(error) or type(error).__name__ in (
        "OfflineModeIsEnabled",
        "UnsupportedProtocol",
        "InvalidURL",
    ):
        return False
    return isinstance(error, ConnectionError | TimeoutError) or (
        type(error).__module__.partition(".")[0] in _NETWORK_LIBRARIES
    )


def _cause(error: BaseException) -> BaseException:
    """What huggingface_hub met before it said that a file is not in the cache either, or that an upload
    failed."""
    while isinstance(error, RuntimeError) or type(error).__name__ == "LocalEntryNotFoundError":
        if error.__cause__ is None:
            break
        error = error.__cause__
    return error


def _status(error: BaseException) -> int | None:
    return getattr(getattr(error, "response", None), "status_code", None)


def _wait(error: BaseException, number: int) -> float:
    header = getattr(getattr(_cause(error), "response", None), "headers", {}).get("Retry-After", "")
    if header.isdigit():
        return min(float(header), LONGEST_WAIT)
    return float(2**number) * random.uniform(0.75, 1.25)  # so that many clients do not come back at once


@contextmanager
def explained(reference: str, *, typed: bool = False) -> Iterator[None]:
    """Turn what huggingface_hub raises about `reference` into a SoupkitError with the next step.

    typed: the reference might as well have been a misspelled path.
    """
    try:
        yield
    except (SoupkitError, KeyboardInterrupt):
        raise
    except Exception as error:
        explanation = _explain(_cause(error), reference, typed)
        if explanation is None:
            raise
        raise explanation from error


def _explain(error: BaseException, reference: str, typed: bool) -> SoupkitError | None:
    from huggingface_hub import errors

    if isinstance(error, errors.GatedRepoError):
        return ReferenceError(
            f"{reference}: is gated: its owner grants access on request",
            hint=f"ask for access on {page(reference)}, then log in: hf auth login, or set HF_TOKEN",
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return ReferenceError(f"{reference}: has no such revision", hint=_revisions(reference))
    if isinstance(error, errors.RepositoryNotFoundError):
        return _no_repository(reference, typed)
    if isinstance(error, errors.OfflineModeIsEnabled):
        return not_cached(reference)
    if isinstance(error, errors.HFValidationError):
        return ReferenceError(
            f"{reference}: is no name of a repository: {error}", hint="write org/name[@revision]"
        )
    if isinstance(error, errors.EntryNotFoundError):
        return ReferenceError(f"{reference}: a file of it is gone: {_first_line(error)}", hint="run it again")
    if (status := _status(error)) is not None:
        return _explain_status(status, error, reference)
    if is_network(error) or isinstance(error, Interrupted):
        return _unreachable(error, reference, typed)
    return _explain_disk(error, reference) if isinstance(error, OSError) else None


def not_cached(reference: str) -> ReferenceError:
    """HF_HUB_OFFLINE is set, and the cache does not hold what is needed."""
    return ReferenceError(
        f"{reference}: is not in the cache, and HF_HUB_OFFLINE is set",
        hint=f"while online, run: soupkit pull {reference}",
    )


def _explain_status(status: int, error: BaseException, reference: str) -> SoupkitError:
    what = _first_line(error)
    if status == 401:
        from huggingface_hub import get_token

        problem = f"does not accept the token: {what}" if get_token() else "wants a token, and there is none"
        return ReferenceError(
            f"{reference}: the Hub {problem}", hint="log in: hf auth login, or set HF_TOKEN"
        )
    if status == 403:
        return ReferenceError(
            f"{reference}: access is forbidden: {what}",
            hint="use a token that may do this: hf auth login, or set HF_TOKEN (hf auth whoami shows "
            "whose it is)",
        )
    if status == 429:
        return ReferenceError(
            f"{reference}: the Hub takes no more requests for now (429, after {NUM_TRIES} tries)",
            hint="wait some minutes; requests with a token have a higher limit: hf auth login",
        )
    if status >= 500:
        return ReferenceError(
            f"{reference}: the Hub has a problem (it answers {status}, after {NUM_TRIES} tries)",
            hint="try again later; HF_HUB_OFFLINE=1 works with what the cache holds",
        )
    return ReferenceError(f"{reference}: the Hub answers {status}: {what}", hint="check the reference")


def _no_repository(reference: str, typed: bool) -> ReferenceError:
    here = "no such file or directory here, and " if typed else ""
    return ReferenceError(
        f"{reference}: {here}no such repository on {endpoint()}, or a private one",
        hint="check the spelling; for a private repository log in: hf auth login, or set HF_TOKEN",
    )


def _unreachable(error: BaseException, reference: str, typed: bool) -> ReferenceError:
    here = "no such file or directory here, and " if typed else ""
    reason = f"{type(error).__name__}: {_first_line(error)}".removesuffix(": ")
    return ReferenceError(
        f"{reference}: {here}{endpoint()} cannot be reached or keeps breaking off ({reason})",
        hint="check the connection, HF_ENDPOINT and proxies; HF_HUB_DOWNLOAD_TIMEOUT waits longer (seconds); "
        "HF_HUB_OFFLINE=1 works with what the cache holds",
    )


def _explain_disk(error: OSError, reference: str) -> SoupkitError | None:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return OutputError(
            f"{reference}: the disk of the cache is full ({cache()})",
            hint="free some space, set HF_HOME to another disk, or merge with --stream, which stores "
            "no inputs",
        )
    if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
        return OutputError(
            f"{reference}: the cache {cache()} cannot be written", hint="set HF_HOME to another folder"
        )
    if INCOMPLETE in str(error):
        return CheckpointError(f"{reference}: arrived incomplete: {_first_line(error)}", hint="run it again")
    return (
        CheckpointError(f"{reference}: cannot be downloaded: {_first_line(error)}")
        if error.errno is None
        else None
    )


def _revisions(reference: str) -> str:
    """What the repository has instead, when it says."""
    from huggingface_hub import HfApi

    try:
        refs = HfApi().list_repo_refs(repository_of(reference))
        names = [ref.name for ref in [*refs.branches, *refs.tags]]
    except Exception:  # only a hint hangs on it
        names = []
    return f"it has {', '.join(names[:10])}" if names else f"see {page(reference)}/tree/main"


def repository_of(reference: str) -> str:
    """The org/name of a reference."""
    return reference.removeprefix("hf://").partition("@")[0].partition(":")[0]


def page(reference: str) -> str:
    """The repository's page in a browser."""
    return f"{endpoint()}/{repository_of(reference)}"


def endpoint() -> str:
    """The Hub that is spoken to (HF_ENDPOINT)."""
    from huggingface_hub import constants

    return str(constants.ENDPOINT)


def cache() -> str:
    """The folder that downloads go to (HF_HUB_CACHE, HF_HOME)."""
    from huggingface_hub import constants

    return str(constants.HF_HUB_CACHE)


def _first_line(error: object) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "")
