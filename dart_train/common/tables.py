"""Tables as text: Markdown for files, aligned columns for a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]], *, align: bool = False) -> str:
    """A Markdown table without a trailing newline; `|` within a cell is escaped.

    align: pad every column to its widest cell, so that the source reads well without a renderer.
    """
    lines = [[cell.replace("|", "\\|").replace("\n", " ") for cell in line] for line in [header, *rows]]
    _check_widths(lines)
    rule = ["---"] * len(header)
    if align:
        widths = _column_widths(lines)
        lines = [[cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in lines]
        rule = ["-" * width for width in widths]
    return "\n".join("| " + " | ".join(line) + " |" for line in [lines[0], rule, *lines[1:]])


def aligned_table(rows: Iterable[Sequence[str]], *, gap: str = "  ") -> str:
    """Plain text: the first column aligned left, all others right, as numbers are read."""
    lines = list(rows)
    _check_widths(lines)
    widths = _column_widths(lines)
    padded = [
        [line[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True))]
        for line in lines
    ]
    return "\n".join(gap.join(line) for line in padded)


def _column_widths(lines: Sequence[Sequence[str]]) -> list[int]:
    return [max(map(len, column)) for column in zip(*lines, strict=True)]


def _check_widths(lines: Sequence[Sequence[str]]) -> None:
    wrong = next((line for line in lines if len(line) != len(lines[0])), None)
    if wrong is not None:
        raise ValueError(f"a table row has {len(wrong)} cells, expected {len(lines[0])} as in the header: {wrong}")
