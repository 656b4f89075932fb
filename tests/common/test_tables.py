"""Tables as text."""

from __future__ import annotations

import pytest

from dart_train.common.tables import aligned_table, markdown_table


def test_markdown_table() -> None:
    table = markdown_table(["name", "n"], [["a", "1"], ["longer", "20"]])
    assert table == "| name | n |\n| --- | --- |\n| a | 1 |\n| longer | 20 |"


def test_markdown_table_aligned() -> None:
    table = markdown_table(["name", "n"], [["a", "1"], ["longer", "20"]], align=True)
    assert table == "| name   | n  |\n| ------ | -- |\n| a      | 1  |\n| longer | 20 |"


def test_markdown_cells_cannot_break_the_table() -> None:
    lines = markdown_table(["name"], [["a|b"], ["two\nlines"]]).splitlines()
    assert lines[2:] == ["| a\\|b |", "| two lines |"]


def test_aligned_table_puts_numbers_to_the_right() -> None:
    assert aligned_table([["", "full", "half"], ["tokens", "64", "32.5"]]) == "        full  half\ntokens    64  32.5"


@pytest.mark.parametrize("make", [lambda rows: markdown_table(rows[0], rows[1:]), aligned_table])
def test_row_with_missing_cells_is_an_error(make: object) -> None:
    with pytest.raises(ValueError, match="has 1 cells, expected 2"):
        make([["a", "b"], ["1"]])  # type: ignore[operator]
