"""Results as pandas frames; pandas is imported when one is asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from featx.errors import FeatxError

if TYPE_CHECKING:
    import pandas as pd

    Frame = pd.DataFrame


def frame_of(columns: Mapping[str, Sequence[Any]], *, index: str | None = None) -> pd.DataFrame:
    """Return a pandas frame of columns of one length ``(n,)``, in their order.

    Args:
        columns: Name and values of each column.
        index: The column whose values name the rows; None numbers them.

    Raises:
        FeatxError: pandas is not installed.
    """
    try:
        import pandas as pd
    except ModuleNotFoundError as err:
        if err.name != "pandas":  # installed, and one of its own packages is missing
            raise
        raise FeatxError(
            "A frame needs the package 'pandas', which is not installed: pip install pandas."
        ) from err
    frame = pd.DataFrame(dict(columns))
    return frame if index is None else frame.set_index(index)
