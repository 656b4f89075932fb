"""Small pieces of HTML: everything that comes from rows, models or recipes passes through `text`."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from PIL import Image

_SMALL = 200_000  # pixels up to which a picture stays without loss


@dataclass(frozen=True)
class Cell:
    """inner: finished HTML. value: what it is sorted by where that is a number; None: there is none, so last."""

    inner: str
    value: float | None = None
    number: bool = False

    def __str__(self) -> str:
        if not self.number:
            return f"<td>{self.inner}</td>"
        return f'<td class="n" data-v="{"" if self.value is None else f"{self.value:.9g}"}">{self.inner}</td>'


@dataclass(frozen=True)
class TableRow:
    cells: Sequence[Cell]
    data: Mapping[str, str] = field(default_factory=dict)
    kind: str = ""


def text(words: object) -> str:
    return html.escape(str(words), quote=True)


def words(content: object) -> Cell:
    return Cell(text(content))


def number(value: float | None, shown: str, kind: str = "") -> Cell:
    return Cell(f'<span class="{kind}">{text(shown)}</span>' if kind else text(shown), value, True)


def table(name: str, head: Sequence[str], rows: Iterable[TableRow]) -> str:
    """Sorts by any of its columns."""
    made = list(rows)
    numeric = [all(row.cells[i].number for row in made) for i in range(len(head))]
    heads = "".join(
        f'<th scope="col"{" class=n" if right else ""}><button type="button">{text(title)}</button></th>'
        for title, right in zip(head, numeric, strict=True)
    )
    body = "\n".join(_row(row) for row in made)
    return (
        f'<div class="scroll"><table class="sorts" id="{name}"><thead><tr>{heads}</tr></thead>\n'
        f"<tbody>\n{body}\n</tbody></table></div>"
    )


def _row(row: TableRow) -> str:
    data = "".join(f' data-{name}="{text(value)}"' for name, value in row.data.items())
    kind = f' class="{row.kind}"' if row.kind else ""
    return f"<tr{kind}{data}>{''.join(str(cell) for cell in row.cells)}</tr>"


def picks(table_id: str, choices: Mapping[str, tuple[str, Sequence[str], bool]]) -> str:
    """Selects that hide rows. choices: name of the row's data: (label, values, whether all may be shown)."""
    made = []
    for name, (label, values, every) in choices.items():
        options = (['<option value="">all</option>'] if every else []) + [f"<option>{text(v)}</option>" for v in values]
        hidden = " hidden" if len(values) < 2 else ""
        pick = f'<select name="{name}">{"".join(options)}</select>'
        made.append(f'<label class="pick"{hidden}>{text(label)}{pick}</label>')
    return f'<div data-picks="{table_id}">{"".join(made)}</div>'


def section(name: str, title: str, note: str, *parts: str) -> str:
    """note: finished HTML."""
    told = f'<p class="note">{note}</p>' if note else ""
    return f'<section id="{name}"><h2>{text(title)}</h2>{told}{"".join(parts)}</section>'


def embedded(content: bytes, kind: str, alt: str) -> str:
    data = base64.b64encode(content).decode()
    return f'<img alt="{text(alt)}" src="data:image/{kind};base64,{data}">'


def picture(image: Image.Image, alt: str) -> str:
    file = io.BytesIO()
    small = image.width * image.height <= _SMALL
    if small:
        image.save(file, "PNG", optimize=True)
    else:
        image.convert("RGB").save(file, "JPEG", quality=86)
    return embedded(file.getvalue(), "png" if small else "jpeg", alt)
