"""Putting measured tables into the documents, between their two marks."""

from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
START, END = "<!-- measured -->\n", "<!-- end -->\n"


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def write_measured(document: str, text: str, *, name: str = "") -> None:
    """Replace what stands between the marks of a document of the project.

    Args:
        document: Path from the project's folder.
        text: To stand there.
        name: Of the marks, where the document has several: ``<!-- measured: name -->``.
    """
    path = ROOT / document
    start = START.replace("measured", f"measured: {name}") if name else START
    before, mark, rest = path.read_text(encoding="utf-8").partition(start)
    if not mark:
        raise SystemExit(f"'{document}' has no line {start.strip()}")
    after = rest.partition(END)[2]
    path.write_text(before + start + text + END + after, encoding="utf-8")
