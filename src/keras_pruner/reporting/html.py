"""Self-contained HTML pages: figures, bars, curves, masks and tables, in light and dark."""

import functools
import html
import importlib.resources
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from keras_pruner.reporting.tables import Table

History = Any  # `keras.callbacks.History`, or its dict: a name -> one number for each epoch

KINDS = ("kept", "zero", "removed")
"""The parts that a bar of a table may have, as its key names them."""

# A notebook brings its own colours and tables.
_CELL = ".kp-report th, .kp-report td { text-align: left } .kp-report .number { text-align: right }"


def document(title: str, parts: Iterable[str]) -> str:
    """The whole page; `title` is text, `parts` are HTML."""
    name = html.escape(title)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{name}</title>\n<style>{_style()}</style>\n</head>\n<body>\n<h1>{name}</h1>\n"
        + "\n".join(parts)
        + "\n</body>\n</html>\n"
    )


@functools.cache
def _style() -> str:
    return importlib.resources.files(__package__).joinpath("page.css").read_text(encoding="utf-8")


def cell(parts: Iterable[str]) -> str:
    """The output of a notebook cell; `parts` are HTML."""
    content = "\n".join(parts)
    return f'<style>{_CELL}</style>\n<div class="kp-report">\n{content}\n</div>'


# ---------------------------------------------------------------------- tables and text


def table(shown: Table, limit: int | None = None, *, bars: bool = True) -> str:
    """A table with at most `limit` rows; `bars`: also draw the bars of the rows."""
    numbers = shown.most_important(limit)
    drawn = _table_bars(shown, numbers) if bars and shown.bars else []
    heads = [column.removeprefix(">") for column in shown.columns]
    right = [column.startswith(">") for column in shown.columns]
    totals = [_row(row, heads, right, "" if drawn else None) for row in shown.totals]
    rows = [
        _row(shown.rows[number], heads, right, drawn[i] if drawn else None)
        for i, number in enumerate(numbers)
    ]
    title = f"<caption>{html.escape(shown.title)}</caption>" if shown.title else ""
    body = _body("totals", totals) + _body("", rows)
    head = _head(heads, right, with_bars=bool(drawn))
    return (
        f'<div class="table">{_bar_key(shown, drawn)}<table>{title}\n{head}\n{body}</table></div>'
    )


def note(text: str) -> str:
    """A paragraph."""
    return f"<p>{html.escape(text)}</p>" if text else ""


def steps(title: str, commands: Mapping[str, str]) -> str:
    """A list of next steps; `commands` maps each purpose to a command."""
    items = [
        f"<li>{html.escape(purpose)}<code>{html.escape(command)}</code></li>"
        for purpose, command in commands.items()
    ]
    return _section(title, f"<ul>{''.join(items)}</ul>") if items else ""


def _head(heads: Sequence[str], right: Sequence[bool], *, with_bars: bool) -> str:
    cells = [
        f"<th{_class('number' if is_right else '')}>{html.escape(head)}</th>"
        for head, is_right in zip(heads, right, strict=True)
    ]
    if with_bars:
        cells.insert(1, "<th></th>")
    return f"<thead><tr>{''.join(cells)}</tr></thead>"


def _row(
    values: Sequence[object], heads: Sequence[str], right: Sequence[bool], bar: str | None
) -> str:
    """A row; on a narrow page its cells stand below each other, each with its label."""
    cells = [
        f'<td{_class("number" if is_right else "")} data-label="{html.escape(head if i else "")}">'
        f"{_breakable(str(value))}</td>"
        for i, (value, head, is_right) in enumerate(zip(values, heads, right, strict=True))
    ]
    if bar is not None:
        cells.insert(1, f'<td class="bar">{bar}</td>')
    return f"<tr>{''.join(cells)}</tr>"


def _body(name: str, rows: Sequence[str]) -> str:
    return f"<tbody{_class(name)}>\n{chr(10).join(rows)}\n</tbody>\n" if rows else ""


def _class(name: str) -> str:
    return f' class="{name}"' if name else ""


def _breakable(text: str) -> str:
    """A name that may be broken after its slashes and underscores."""
    return html.escape(text).replace("/", "/<wbr>").replace("_", "_<wbr>")


def _table_bars(shown: Table, numbers: Sequence[int]) -> list[str]:
    """The bars of these rows; the longest of the whole table fills its cell."""
    totals = [sum(number for _, number in parts) for parts in shown.bars]
    largest = max(totals, default=0) or 1
    found = []
    for i in numbers:
        whole = totals[i] or 1
        parts = "".join(
            f'<span class="{kind}" style="width:{100 * number / whole:.2f}%"></span>'
            for kind, number in shown.bars[i]
        )
        width = 100 * totals[i] / largest
        found.append(f'<span class="fill" style="width:{width:.2f}%">{parts}</span>')
    return found


def _bar_key(shown: Table, drawn: Sequence[str]) -> str:
    present = {kind for parts in shown.bars for kind, number in parts if number}
    kinds = [(kind, kind) for kind in KINDS if kind in present]
    return _key(*kinds) if drawn and kinds else ""


# ---------------------------------------------------------------------- figures and bars


def figures(values: Iterable[tuple[str, str, str]]) -> str:
    """Large numbers side by side, each with a label and a line of detail."""
    cards = [
        f"<div>{html.escape(label)}<strong>{html.escape(number)}</strong>"
        f"<small>{html.escape(detail)}</small></div>"
        for number, label, detail in values
    ]
    return f'<section class="figures">{"".join(cards)}</section>' if cards else ""


def pairs(
    title: str,
    unit: str,
    sides: tuple[str, str],
    values: Sequence[tuple[str, float, float]],
    sentence: str = "",
) -> str:
    """Two horizontal bars for each name, one for each side, with their numbers.

    Args:
        title: the heading.
        unit: of the numbers.
        sides: the names of the two sides; the first is drawn grey.
        values: (name, number of the first side, number of the second).
        sentence: what the bars show.
    """
    largest = max((number for _, *both in values for number in both), default=0.0) or 1.0
    rows = []
    for name, before, after in values:
        fills = _fill("before", before / largest) + _fill("kept", after / largest)
        rows.append(
            f'<span class="name">{_breakable(name)}</span><span class="track">{fills}</span>'
            f'<span class="value">{before:.3g}<br>{after:.3g}</span>'
        )
    key = _key(("before", sides[0]), ("kept", f"{sides[1]} ({unit})"))
    label = html.escape(f"{title}, {unit}")
    bars = f'<div class="bars" role="group" aria-label="{label}">{"".join(rows)}</div>'
    return _section(title, f"{note(sentence)}{key}{bars}")


def _fill(kind: str, share: float) -> str:
    return f'<span class="fill {kind}" style="width:{100 * share:.2f}%"></span>'


def _key(*entries: tuple[str, str]) -> str:
    shown = "".join(
        f'<span><i class="{kind}"></i>{html.escape(name)}</span>' for kind, name in entries
    )
    return f'<p class="key">{shown}</p>'


def _section(title: str, content: str) -> str:
    return f"<section><h2>{html.escape(title)}</h2>\n{content}</section>"


# ---------------------------------------------------------------------- masks

_SHOWN = (64, 128)  # rows and columns of a kernel that a picture shows at most


def mask(path: str, values: np.ndarray) -> str:
    """A picture of a corner of a kernel: the entries that are kept, one square each.

    Args:
        path: the name of the kernel.
        values: its values; the last axis is drawn downwards, the others across.
    """
    units = np.asarray(values).reshape(-1, values.shape[-1]).T != 0
    corner = units[: _SHOWN[0], : _SHOWN[1]]
    height, width = corner.shape
    rects = "".join(
        f"M{start} {row}h{end - start}v1H{start}z"
        for row, kept in enumerate(corner)
        for start, end in _runs(kept)
    )
    whole = "" if corner.shape == units.shape else f" of {units.shape[0]:,} by {units.shape[1]:,}"
    sentence = f"{path}: {height} outputs (down) by {width} inputs (across){whole}."
    label = html.escape(f"{sentence} {np.count_nonzero(corner) / corner.size:.0%} are kept.")
    picture = (
        f'<svg class="mask" viewBox="0 0 {width} {height}" preserveAspectRatio="xMinYMin" '
        f'role="img" aria-label="{label}"><rect width="{width}" height="{height}"/>'
        f'<path d="{rects}"/></svg>'
    )
    key = _key(("kept", "kept"), ("zero", "zero"))
    return _section("The largest kernel", f"{note(sentence)}{key}{picture}")


def _runs(kept: np.ndarray) -> list[tuple[int, int]]:
    """Where runs of True begin and end."""
    edges = np.flatnonzero(np.diff(np.concatenate(([False], kept, [False]))))
    return [(int(start), int(end)) for start, end in edges.reshape(-1, 2)]


# ---------------------------------------------------------------------- training


def training(history: History) -> list[str]:
    """The metrics of a history over the sparsity, epoch by epoch; [] without any."""
    found = curves(history)
    sparsity = found.pop("sparsity", [])
    if not found and not sparsity:
        return []
    drawn = found or {"sparsity": sparsity}
    longest = max(map(len, [*drawn.values(), sparsity]))
    panels = [
        _curve(name, points, sparsity if found else [], longest) for name, points in drawn.items()
    ]
    return [_section("While training", "".join(panels))]


def curves(history: History) -> dict[str, list[float]]:
    """The curves of a history worth drawing: the sparsity, and the validation metrics if any."""
    given = history.history if isinstance(history, keras.callbacks.History) else history
    found: dict[str, list[float]] = {}
    for name, values in (given or {}).items():
        for each in values:
            for entry, number in numbers(name, each):
                found.setdefault(entry, []).append(number)
    validated = [name for name in found if name.startswith("val_")]
    measured = validated or [name for name in found if name != "sparsity"]
    chosen = [name for name in measured if "loss" not in name] or measured
    order = [name for name in ("sparsity",) if name in found] + chosen
    return {name.removeprefix("val_"): found[name] for name in order}


def numbers(name: str, value: Any) -> list[tuple[str, float]]:
    """A metric as numbers: itself, or each of its entries, `name[0]` and so on."""
    array = np.asarray(keras.ops.convert_to_numpy(value))
    if not array.ndim:
        return [(name, float(array))]
    return [(f"{name}{list(at)}", float(array[at])) for at in np.ndindex(array.shape)]


def _curve(name: str, points: Sequence[float], sparsity: Sequence[float], longest: int) -> str:
    """A panel: the metric as a line, over the sparsity as an area.

    With `validation_freq`, a metric has fewer values than there are epochs, and a history does not
    say for which epochs. Its panel then counts values in place of epochs, without the sparsity.
    """
    is_short = len(points) < longest
    low, high = _range(points)
    places = _places(points, low, high)
    joined = "L".join(f"{x:.2f} {y:.2f}" for x, y in places)
    dots = "".join(f"M{x:.2f} {y:.2f}h0" for x, y in places)
    area = _area(sparsity) if len(sparsity) == len(points) > 1 else ""
    key = [("curved", f"{name}: {points[-1]:.4g} at the end")]
    key += [("zero", f"sparsity: {sparsity[-1]:.4g} at the end")] if area else []
    count = f", {len(points)} values over {longest} epochs" if is_short else ""
    label = html.escape(f"{name}{count}: from {points[0]:.4g} to {points[-1]:.4g}")
    right = '<span class="ends"><span>1</span><span>0</span></span>' if area else "<span></span>"
    return (
        f'{_key(*key)}<div class="curve">'
        f'<span class="ends left"><span>{high:.4g}</span><span>{low:.4g}</span></span>'
        f'<svg viewBox="0 0 100 100" preserveAspectRatio="none" role="img" aria-label="{label}">'
        f'{area}<path d="M{joined}"/><path class="points" d="{dots}"/></svg>{right}'
        f'<span class="steps"><span>{"value" if is_short else "epoch"} 1</span>'
        f"<span>{html.escape(count.removeprefix(', ')) or len(points)}</span></span></div>"
    )


def _range(points: Sequence[float]) -> tuple[float, float]:
    finite = [value for value in points if math.isfinite(value)] or [0.0]
    return min(finite), max(finite)


def _places(points: Sequence[float], low: float, high: float) -> list[tuple[float, float]]:
    """Where the finite points are in a square of 100, with a margin above and below."""
    return [
        (100 * i / max(1, len(points) - 1), 95 - 90 * (value - low) / ((high - low) or 1.0))
        for i, value in enumerate(points)
        if math.isfinite(value)
    ]


def _area(sparsity: Sequence[float]) -> str:
    """The sparsity, from 0 at the bottom to 1 at the top."""
    step = 100 / (len(sparsity) - 1)
    line = "L".join(f"{step * i:.2f} {100 - 100 * value:.2f}" for i, value in enumerate(sparsity))
    return f'<path class="area" d="M0 100L{line}L100 100Z"/>'
