"""The state of one file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

State = Literal["current", "stale", "missing", "unfinished", "damaged", "unchecked"]


@dataclass(frozen=True)
class FileStatus:
    """The state of one file.

    Attributes:
        path: The file.
        state: ``"current"``: what its inputs give; ``"stale"``: they have changed; ``"missing"``;
            ``"unfinished"``: it was interrupted; ``"damaged"``; or ``"unchecked"``: what
            it was made from is not there to compare with.
        reason: Why it is not current, and of a model which of two heads it should be made of;
            empty where it is current.
        command: What brings it up to date; empty where it is, where another file comes first,
            and where featx did not write the file.
    """

    path: Path
    state: State
    reason: str = ""
    command: str = ""
