"""One form for every result: text, a notebook cell, plain data, JSON and an HTML page."""

import dataclasses
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from keras_pruner.reporting import html
from keras_pruner.reporting.tables import Table, encodable, terminal_width
from keras_pruner.validation import as_json

_ROWS = 20  # of a table in the short form
_MORE = "{count:,} more: print(report.full())"


class Report:
    """A result that prints as tables; the base of every class in `kp.reports`.

    A subclass is a frozen dataclass and defines `headline` and `tables`; `notes`, `figures`,
    `charts` and `next_steps` add to them. `as_dict` contains its public fields and properties,
    except fields that are left out of the `repr` (`field(repr=False)`), such as a model.

    Example:
        >>> import dataclasses
        >>> @dataclasses.dataclass(frozen=True)
        ... class Zeros(Report):
        ...     counts: dict[str, int]
        ...
        ...     def headline(self):
        ...         return f"{sum(self.counts.values())} zeros"
        ...
        ...     def tables(self):
        ...         return [Table("", ["weight", ">zeros"], list(self.counts.items()))]
        >>> report = Zeros({"dense/kernel": 6, "head/kernel": 2})
        >>> print(report)
        8 zeros
          weight        zeros
          ───────────────────
          dense/kernel      6
          head/kernel       2
        >>> report.as_dict()
        {'counts': {'dense/kernel': 6, 'head/kernel': 2}}
    """

    def headline(self) -> str:
        """The result in one line, printed first."""
        raise NotImplementedError

    def tables(self) -> Sequence[Table]:
        """The tables, in the order in which they are printed."""
        return ()

    def notes(self) -> Sequence[str]:
        """Sentences printed after the tables."""
        return ()

    def figures(self) -> Sequence[tuple[str, str, str]]:
        """The large numbers at the top of the page: number, label, a line of detail."""
        return ()

    def charts(self) -> Sequence[str]:
        """HTML elements that the page shows before the tables, made with `reporting.html`."""
        return ()

    def next_steps(self) -> Mapping[str, str]:
        """What to do next, for the page: a purpose -> a command or a line of Python."""
        return {}

    def __str__(self) -> str:
        return self._text(_ROWS, terminal_width())

    def full(self) -> str:
        """The text with every row and with names of any length."""
        return self._text(None, None)

    def as_dict(self) -> dict[str, Any]:
        """The fields and properties as dicts, lists, strings and numbers; None for NaN."""
        return _plain(self)

    def to_json(self) -> str:
        """`as_dict` as JSON text."""
        return as_json(self.as_dict())

    def to_html(
        self, path: str | os.PathLike[str] | None = None, *, history: html.History = None
    ) -> str:
        """A self-contained HTML page, without scripts.

        Args:
            path: the file to write. None: only return the page.
            history: the history that `fit` returned, or its dict. The page shows the sparsity
                and the validation metrics, epoch by epoch.

        Returns:
            The text of the page.
        """
        parts = [html.figures(self.figures()), *html.training(history), *self.charts()]
        parts += [html.table(table) for table in self._filled()]
        parts += map(html.note, self.notes())
        page = html.document(self.headline(), [*parts, html.steps("Next", self.next_steps())])
        if path is not None:
            Path(path).write_text(page, encoding="utf-8")
        return page

    def _repr_html_(self) -> str:
        parts = [html.note(self.headline())]
        for table in self._filled():
            parts.append(html.table(table, limit=_ROWS, bars=False))
            parts += map(html.note, _more(table))
        return html.cell([*parts, *map(html.note, self.notes())])

    def _filled(self) -> list[Table]:
        return [table for table in self.tables() if table.rows or table.totals]

    def _text(self, limit: int | None, width: int | None) -> str:
        parts = [encodable(self.headline())]
        for table in self._filled():
            parts.append(table.text(limit, width))
            parts += [f"  ... and {more}" for more in _more(table, limit)]
        return "\n".join(filter(None, [*parts, *map(encodable, self.notes())]))


def _more(table: Table, limit: int | None = _ROWS) -> list[str]:
    """The note about the rows that a table does not show; none if it shows all."""
    hidden = 0 if limit is None else len(table.rows) - limit
    return [_MORE.format(count=hidden)] if hidden > 0 else []


def _plain(value: Any) -> Any:
    """Plain data for JSON; a value that is none, such as a pattern, becomes its name or repr."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float | np.floating):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, np.generic | np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in value]
    if dataclasses.is_dataclass(value) and not hasattr(value, "get_config"):
        return {name: _plain(getattr(value, name)) for name in _names(value)}
    if isinstance(value, os.PathLike):
        return str(value)
    return getattr(value, "__name__", None) or repr(value)


def _names(value: Any) -> list[str]:
    """The public fields that the repr shows, then the public properties."""
    fields = [field.name for field in dataclasses.fields(value) if field.repr]
    derived = [
        name
        for cls in reversed(type(value).__mro__)
        for name, member in vars(cls).items()
        if isinstance(member, property)
    ]
    return [name for name in (*fields, *derived) if not name.startswith("_")]
