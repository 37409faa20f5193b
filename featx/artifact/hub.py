"""Hugging Face's hub by ``huggingface_hub``: its refusals and faults of the network, as errors.

It is Python's own and the HTTP library's errors that are translated here, whichever that library
is; anything else that is raised is a fault of the program, and stays what it is.
"""

from __future__ import annotations

import contextlib
import http
import os
import re
from collections.abc import Callable, Iterator
from typing import Any, Self

from featx.errors import FeatxError, first_line
from featx.packages import install_command, needed

TIMEOUT_S = 10.0
"""Longest time until the hub's first answer."""
_NOT_OF_THE_NETWORK = (PermissionError, FileNotFoundError, NotADirectoryError, IsADirectoryError)
_DISK = frozenset({"ENOSPC", "EDQUOT", "EROFS", "EIO", "ENAMETOOLONG", "EMFILE"})


def accept_terms(page: str) -> str:
    """Return the remedy where a page of the hub has terms."""
    return f"Accept its terms on {page}, and log in as who did: hf auth login."


class Unreachable(Exception):
    """The hub cannot be reached, or is not to be; its text ends a sentence."""


def load_hub(address: str, extra: str, error: Callable[[str], FeatxError]) -> Any:
    """Return ``huggingface_hub``, for which an extra of featx is named where it is missing."""
    try:
        import huggingface_hub
        import huggingface_hub.constants
        import huggingface_hub.errors
    except ImportError as err:
        why = needed(err, "huggingface_hub", install_command(extra))
        raise error(f"'{address}' needs {why}") from err
    return huggingface_hub


@contextlib.contextmanager
def asking(
    hub: Any,
    address: str,
    what: str,
    error: Callable[[str], FeatxError],
    *,
    remedy: str = "Log in as who may: hf auth login.",
    revision: str = "",
) -> Iterator[None]:
    """Turn what ``huggingface_hub`` raises inside into one sentence.

    Addresses that the hub was asked by are left out of it: they may hold signatures.

    Args:
        hub: ``huggingface_hub``.
        address: What was asked for, as the user wrote it.
        what: ``"model"``, ``"data set"`` or another word for it.
        error: Makes the error of a text.
        remedy: What to do where access is refused.
        revision: That was asked for.

    Raises:
        Unreachable: There is no network, or HF_HUB_OFFLINE is set.
    """
    try:
        yield
    except hub.errors.OfflineModeIsEnabled as err:
        raise Unreachable("HF_HUB_OFFLINE is set") from err
    except hub.errors.RevisionNotFoundError as err:
        raise error(f"'{address}': the {what} has no revision '{revision}'.") from err
    except hub.errors.HFValidationError as err:
        raise error(f"'{address}' is not a possible name of the hub: {first_line(err)}") from err
    except (hub.errors.HTTPError, OSError, *_own_faults(hub)) as err:
        status = status_of(err)
        if status >= http.HTTPStatus.INTERNAL_SERVER_ERROR:
            raise Unreachable(f"the hub answers with an error ({status})") from err
        if status:
            raise error(_refusal(hub, err, status, address, remedy)) from err
        if header := _missing_header(err):
            raise Unreachable(
                f"the answer has no header {header}, as of a proxy or a mirror (HF_ENDPOINT) that "
                "is not a hub"
            ) from err
        if _is_local(err):
            reason = getattr(err, "strerror", None) or first_line(err)
            raise error(
                f"'{address}' cannot be kept in the cache '{cache_folder()}': {reason}. Set "
                "HF_HUB_CACHE to a folder that can be written."
            ) from err
        name = "" if isinstance(err, hub.errors.LocalEntryNotFoundError) else type(err).__name__
        raise Unreachable(f"the hub cannot be reached{name and f' ({name})'}") from err


def _own_faults(hub: Any) -> tuple[type[Exception], ...]:
    """Return the errors of a transfer that only newer versions of huggingface_hub have."""
    found = getattr(hub.errors, "XetDownloadError", None)
    return (found,) if found else ()


def cache_folder() -> str:
    """Return where ``huggingface_hub`` keeps files."""
    from huggingface_hub import constants

    return str(constants.HF_HUB_CACHE)


def is_offline() -> bool:
    """Return whether HF_HUB_OFFLINE is set."""
    from huggingface_hub import constants

    asked = os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")
    return asked or bool(constants.HF_HUB_OFFLINE)


def status_of(err: BaseException | None) -> int:
    """Return the status that the hub refused with, 0 without an answer."""
    answers = (getattr(each, "response", None) for each in _causes(err))
    return next((int(each.status_code) for each in answers if each is not None), 0)


def _missing_header(err: BaseException) -> str:
    """Return the header that an answer lacks for being one of the hub; empty where it has all."""
    found = re.search(r"\b(X-Repo-Commit|ETag)\b", " ".join(map(str, _causes(err))), re.IGNORECASE)
    return found[1] if found else ""


def _causes(err: BaseException | None) -> Iterator[BaseException]:
    while err is not None:
        yield err
        err = err.__cause__


def _is_local(err: BaseException) -> bool:
    import errno

    code = errno.errorcode.get(getattr(err, "errno", None) or 0, "")
    return code in _DISK or (isinstance(err, _NOT_OF_THE_NETWORK) and bool(code))


def _refusal(hub: Any, err: BaseException, status: int, address: str, remedy: str) -> str:
    start = f"'{address}'"
    if isinstance(err, hub.errors.GatedRepoError) or status == 403:
        return f"{start}: access is refused (403). {remedy}"
    if status == 401:
        return f"{start} does not exist, or is private (401). Check it, or log in: hf auth login."
    if status == 404:
        return f"{start} does not exist on the hub (404). Check its name."
    if status == 429:
        return f"{start}: the hub is asked too often (429). Wait some minutes, or log in."
    return f"{start}: the hub answers with an error ({status})."


class Bar:
    """Stand-in for tqdm in ``huggingface_hub``: draws nothing, and calls a callback."""

    progress: Callable[[int, int], None] | None = None

    def __init__(self, *_: object, total: int | None = None, initial: int = 0, **__: object):
        self.total, self.n = total or 0, initial

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def update(self, count: float | None = 1) -> None:
        """Add bytes that were received."""
        self.n += int(count or 0)
        if told := type(self).progress:
            told(self.n, self.total)

    def __getattr__(self, _: str) -> Callable[..., None]:
        return lambda *_, **__: None


def bar_of(progress: Callable[[int, int], None] | None) -> type[Bar]:
    """Return a bar that calls a callback with the bytes done and the bytes of all."""
    told = None if progress is None else staticmethod(progress)
    return type("Bar", (Bar,), {"progress": told})
