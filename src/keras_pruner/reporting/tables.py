"""Tables as plain text that fits the terminal."""

import dataclasses
import shutil
import sys
import textwrap
from collections.abc import Iterable, Sequence

from rich.cells import cell_len

_GAP = "  "
_LEAST = 8  # characters that a column of text keeps on a narrow terminal
_PIPED = 80  # characters a line where there is no terminal


@dataclasses.dataclass(frozen=True)
class Table:
    """One table of a report.

    Attributes:
        title: the line above it; may be empty.
        columns: headings. One that starts with ">" is a column of numbers, aligned to the right.
        rows: the cells of each row.
        totals: rows of totals, shown before the others.
        importance: one number for each row. A shortened table shows the rows with the highest
            numbers; without `importance`, the first rows.
        bars: one bar for each row, drawn on HTML pages only. Its parts are (kind, number), where
            the kind is "kept", "zero" or "removed".
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[object]]
    totals: Sequence[Sequence[object]] = ()
    importance: Sequence[float] = ()
    bars: Sequence[Sequence[tuple[str, float]]] = ()

    def most_important(self, limit: int | None) -> list[int]:
        """The indices of the `limit` most important rows, in the table's order. None: all rows."""
        every = range(len(self.rows))
        if limit is None or len(self.rows) <= limit:
            return list(every)
        order = sorted(every, key=lambda i: -self.importance[i]) if self.importance else every
        return sorted(order[:limit])

    def text(self, limit: int | None = None, width: int | None = None) -> str:
        """The table as lines of text.

        Args:
            limit: the number of rows to show. None: all.
            width: characters a line. None: as many as the cells need, so that nothing is cut.

        Example:
            >>> table = Table("", ["weight", ">zeros"], [("dense/kernel", 6), ("head/kernel", 2)])
            >>> print(table.text())
              weight        zeros
              ───────────────────
              dense/kernel      6
              head/kernel       2
        """
        rows = [self.rows[i] for i in self.most_important(limit)]
        right = [column.startswith(">") for column in self.columns]
        cells = [
            [encodable(str(cell).replace("\n", " ")) for cell in row]
            for row in [[c.removeprefix(">") for c in self.columns], *self.totals, *rows]
        ]
        widths = _widths(cells, right, width)
        lines = [_line(row, widths, right) for row in cells]
        rule = f"{_GAP}{_rule() * (sum(widths) + len(_GAP) * (len(widths) - 1))}"
        head, totals = lines[0], lines[1 : 1 + len(self.totals)]
        parts = [*([encodable(self.title)] if self.title else []), head, rule, *totals]
        if totals and rows:
            parts.append(rule)
        parts += lines[1 + len(totals) :]
        return "\n".join(parts)


def render(
    title: str, columns: Sequence[str], rows: Iterable[Sequence[object]], width: int | None = None
) -> str:
    """A table as text, as wide as the terminal."""
    return Table(title, columns, list(rows)).text(width=width or terminal_width())


def terminal_width() -> int:
    """Characters a line on the terminal; 80 where the output is no terminal."""
    return shutil.get_terminal_size((_PIPED, 24)).columns


def encodable(text: str) -> str:
    """The text with escapes for characters that standard output cannot encode."""
    encoding = _encoding()
    safe = "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text)
    return safe.encode(encoding, "backslashreplace").decode(encoding)


def shorten(name: str, length: int) -> str:
    """Shorten a long name by leaving out its middle.

    Example:
        >>> shorten("backbone/stage_3/block_2/conv/kernel", 20)
        'backbo…2/conv/kernel'
    """
    if cell_len(name) <= length:
        return name
    ellipsis = "…" if _can_print("…") else "..."
    kept = max(2, length - len(ellipsis))
    head = kept // 3
    return f"{name[:head]}{ellipsis}{name[len(name) - (kept - head) :]}"


def _encoding() -> str:
    return getattr(sys.stdout, "encoding", None) or "utf-8"


def _can_print(text: str) -> bool:
    try:
        text.encode(_encoding())
    except UnicodeEncodeError:
        return False
    return True


def _rule() -> str:
    return "─" if _can_print("─") else "-"


def _widths(cells: list[list[str]], right: list[bool], width: int | None) -> list[int]:
    """The width of each column: numbers are never cut, headings wrap, text columns get narrower."""
    columns = list(zip(*cells, strict=True))
    widths = [max(map(cell_len, column)) for column in columns]
    if width is None:
        return widths
    least = [
        _longest([*column[1:], *column[0].split()]) if is_right else min(natural, _LEAST)
        for column, is_right, natural in zip(columns, right, widths, strict=True)
    ]
    while sum(widths) + len(_GAP) * len(widths) > width:
        spare = [(w, i) for i, w in enumerate(widths) if w > least[i]]
        if not spare:
            break
        widths[max(spare)[1]] -= 1
    return widths


def _longest(cells: Iterable[str]) -> int:
    return max(map(cell_len, cells), default=0)


def _line(row: list[str], widths: list[int], right: list[bool]) -> str:
    """A row, over several lines where a sentence is longer than its column."""
    columns = [_wrapped(cell, width) for cell, width in zip(row, widths, strict=True)]
    lines = []
    for number in range(max(map(len, columns))):
        parts = []
        for cell, width, is_right in zip(columns, widths, right, strict=True):
            part = cell[number] if number < len(cell) else ""
            space = " " * (width - cell_len(part))
            parts.append(space + part if is_right else part + space)
        lines.append((_GAP + _GAP.join(parts)).rstrip())
    return "\n".join(lines)


def _wrapped(cell: str, width: int) -> list[str]:
    if cell_len(cell) <= width:
        return [cell]
    lines = textwrap.wrap(cell, width, break_long_words=False, break_on_hyphens=False)
    return [shorten(line, width) for line in lines]
