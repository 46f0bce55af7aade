"""Text tables, as they are printed and written to logs."""

import io
from collections.abc import Iterable, Sequence
from typing import Literal

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table


def render(
    title: str, columns: Sequence[str], rows: Iterable[Sequence[object]], width: int = 100
) -> str:
    """Lay out a table as plain text; columns whose heading starts with ">" are right-aligned."""
    table = Table(title=title, box=SIMPLE, title_justify="left", title_style="", expand=False)
    for column in columns:
        right = column.startswith(">")
        justify: Literal["right", "left"] = "right" if right else "left"
        table.add_column(column.removeprefix(">"), justify=justify, overflow="fold")
    for row in rows:
        table.add_row(*(str(cell) for cell in row))
    out = io.StringIO()
    # In a notebook rich would show the table by itself, and write nothing.
    console = Console(
        file=out, width=width, force_jupyter=False, color_system=None, markup=False, emoji=False
    )
    console.print(table)
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines())
