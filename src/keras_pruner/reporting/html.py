"""HTML pages that need nothing else: tables, and charts in HTML and SVG, in light and dark."""

import html
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from keras_pruner.reporting.tables import Table

History = Any  # `keras.callbacks.History`, or its dict: a name -> one number for each epoch

_STYLE = """
:root { color-scheme: light dark; --paper: #fff; --card: #f5f7f9; --ink: #1f2328; --soft: #5f6975;
        --rule: #d5dae0; --first: #0a63c9; --second: #b1500c; --zero: #dbe3ec; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #14171b; --card: #1d2127; --ink: #e3e7ec; --soft: #98a2ae; --rule: #353c45;
          --first: #6cb0ff; --second: #f2a15f; --zero: #333c47; } }
* { box-sizing: border-box; }
body { max-width: 60rem; margin: 0 auto; padding: 2rem 1.2rem; background: var(--paper);
       color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; line-height: 1.25; margin: 0 0 1.5rem; overflow-wrap: anywhere; }
h2, caption { font-size: 1.05rem; font-weight: 600; text-align: left; margin: 0;
              padding: 0 0 .6rem; }
section, .wide { margin: 0 0 2.2rem; }
p { margin: 0 0 .8rem; color: var(--soft); overflow-wrap: anywhere; }
.figures { display: grid; gap: .8rem;
           grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); }
.figures div { background: var(--card); border-radius: .6rem; padding: 1rem 1.1rem; }
.figures strong { display: block; font-size: 2.2rem; line-height: 1.15; font-weight: 650;
                  color: var(--first); }
.figures small { display: block; color: var(--soft); }
.bars { display: grid; grid-template-columns: minmax(6rem, 15rem) 1fr auto; gap: .3rem .9rem;
        align-items: center; font-size: .93rem; }
.bars .name { overflow-wrap: anywhere; line-height: 1.3; }
.bars .value { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.track { display: flex; flex-direction: column; gap: 3px; }
.fill { display: flex; height: .8rem; min-width: 2px; border-radius: 2px; overflow: hidden;
        background: var(--first); }
.fill.before { background: var(--soft); }
.fill.zero { background: var(--zero); }
.fill.zero span { background: var(--first); }
.key { font-size: .9rem; }
.key i { display: inline-block; width: .75rem; height: .75rem; border-radius: 2px;
         margin: 0 .35rem 0 0; vertical-align: -1px; background: var(--first); }
.key i.before { background: var(--soft); }
.key i.zero { background: var(--zero); }
.key span { margin-right: 1.1rem; }
.curve { display: grid; grid-template-columns: auto 1fr; gap: .2rem .5rem; font-size: .85rem;
         color: var(--soft); margin: 0 0 1.2rem; font-variant-numeric: tabular-nums; }
.curve .heading { grid-column: 1 / 3; color: var(--ink); font-weight: 500; }
.curve .ends { display: flex; flex-direction: column; justify-content: space-between;
               text-align: right; }
.curve .steps { grid-column: 2; display: flex; justify-content: space-between; }
.curve svg { width: 100%; height: 9rem; overflow: visible; border-bottom: 1px solid var(--rule);
             border-left: 1px solid var(--rule); }
path { fill: none; stroke: var(--second); stroke-width: 2; vector-effect: non-scaling-stroke;
       stroke-linecap: round; stroke-linejoin: round; }
path.points { stroke-width: 6; }
path.sparsity { stroke: var(--first); }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .8rem .3rem 0; border-bottom: 1px solid var(--rule); text-align: left;
         font-size: .93rem; vertical-align: top; }
td { overflow-wrap: anywhere; }
th { color: var(--soft); font-weight: 500; }
.number { text-align: right; white-space: nowrap; }
tbody.totals td { font-weight: 600; }
@media (max-width: 36rem) {
  body { padding: 1.2rem .8rem; }
  .bars { grid-template-columns: 1fr auto; }
  .bars .name { grid-column: 1 / 3; margin-top: .35rem; }
  th, td { padding-right: .5rem; font-size: .85rem; } }
@media print { body { max-width: none; } section { break-inside: avoid; } }
"""

# A notebook brings its own colours and tables.
_CELL = ".kp-report th, .kp-report td { text-align: left } .kp-report .number { text-align: right }"


def document(title: str, parts: Iterable[str]) -> str:
    """The whole page; `title` is text, `parts` are HTML."""
    name = html.escape(title)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{name}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<h1>{name}</h1>\n"
        + "\n".join(parts)
        + "\n</body>\n</html>\n"
    )


def cell(parts: Iterable[str]) -> str:
    """The output of a notebook cell; `parts` are HTML."""
    content = "\n".join(parts)
    return f'<style>{_CELL}</style>\n<div class="kp-report">\n{content}\n</div>'


def table(shown: Table, limit: int | None = None) -> str:
    """A table, of `limit` rows at most."""
    right = [column.startswith(">") for column in shown.columns]
    heads = _cells("th", [column.removeprefix(">") for column in shown.columns], right)
    totals = _rows(shown.totals, right)
    caption = f"<caption>{html.escape(shown.title)}</caption>" if shown.title else ""
    return (
        f'<div class="wide"><table>{caption}\n<thead><tr>{heads}</tr></thead>\n'
        + (f'<tbody class="totals">\n{totals}\n</tbody>\n' if totals else "")
        + f"<tbody>\n{_rows(shown.most_important(limit), right)}\n</tbody></table></div>"
    )


def note(text: str) -> str:
    """A paragraph."""
    return f"<p>{html.escape(text)}</p>" if text else ""


def figures(values: Iterable[tuple[str, str, str]]) -> str:
    """Large numbers side by side, each with a label and a line of detail."""
    cards = [
        f"<div>{html.escape(label)}<strong>{html.escape(number)}</strong>"
        f"<small>{html.escape(detail)}</small></div>"
        for number, label, detail in values
    ]
    return f'<section class="figures">{"".join(cards)}</section>' if cards else ""


def pairs(
    title: str, unit: str, sides: tuple[str, str], values: Sequence[tuple[str, float, float]]
) -> str:
    """Two horizontal bars for each name, one for each side, with their numbers.

    Args:
        title: the heading.
        unit: of the numbers.
        sides: the names of the two sides; the first is drawn grey.
        values: (name, number of the first side, number of the second).
    """
    largest = max((number for _, *both in values for number in both), default=0.0) or 1.0
    rows = []
    for name, before, after in values:
        fills = _fill("before", before / largest) + _fill("", after / largest)
        numbers = f"{before:.3g}<br>{after:.3g}"
        rows.append(_bar(name, fills, numbers))
    key = _key(("before", sides[0]), ("", sides[1]))
    return _section(title, f"{key}{_bars(f'{title}, {unit}', rows)}{note(f'In {unit}.')}")


def layers(title: str, weights: Sequence[tuple[str, int, int]]) -> str:
    """One bar for each weight, as wide as its number of entries; the zeros are drawn lighter.

    Args:
        title: the heading.
        weights: (name, number of entries, number of zeros).
    """
    largest = max((size for _, size, _ in weights), default=0) or 1
    rows = []
    for name, size, zeros in weights:
        kept = 1 - zeros / size if size else 0.0
        inner = f'<span style="width:{100 * kept:.2f}%"></span>'
        share = f"{zeros / size:.4f}" if size else "-"
        rows.append(_bar(name, _fill("zero", size / largest, inner), f"{share} of {size:,}"))
    key = _key(("", "kept"), ("zero", "zero"))
    return _section(title, f"{key}{_bars(f'{title}: sparsity and number of weights', rows)}")


def training(history: History) -> list[str]:
    """The sparsity and the validation metrics of a history, epoch by epoch; [] without any."""
    drawn = curves(history)
    return [lines("While training", "epoch", drawn)] if drawn else []


def lines(title: str, step: str, values: Mapping[str, Sequence[float]]) -> str:
    """Curves over steps, each in a panel of its own.

    A curve with fewer values than the longest has no value for every step, and a history does
    not say for which (`validation_freq`): its panel counts the values, and its heading says so.
    """
    longest = max(map(len, values.values()))
    panels = []
    for name, points in values.items():
        is_short = len(points) < longest
        heading = f"{name}, {len(points)} values over {longest} {step}s" if is_short else name
        panels.append(_curve(name, heading, "value" if is_short else step, points))
    return _section(title, "".join(panels))


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


def _section(title: str, content: str) -> str:
    return f"<section><h2>{html.escape(title)}</h2>\n{content}</section>"


def _rows(rows: Iterable[Sequence[object]], right: Sequence[bool]) -> str:
    return "\n".join(f"<tr>{_cells('td', row, right)}</tr>" for row in rows)


def _cells(tag: str, values: Sequence[object], right: Sequence[bool]) -> str:
    return "".join(
        f'<{tag} class="number">{html.escape(str(value))}</{tag}>'
        if is_right
        else f"<{tag}>{html.escape(str(value))}</{tag}>"
        for value, is_right in zip(values, right, strict=True)
    )


def _bars(label: str, rows: Sequence[str]) -> str:
    return f'<div class="bars" role="group" aria-label="{html.escape(label)}">{"".join(rows)}</div>'


def _bar(name: str, fills: str, value: str) -> str:
    return (
        f'<span class="name">{html.escape(name)}</span><span class="track">{fills}</span>'
        f'<span class="value">{value}</span>'
    )


def _fill(kind: str, share: float, inner: str = "") -> str:
    name = f"fill {kind}".strip()
    return f'<span class="{name}" style="width:{100 * share:.2f}%">{inner}</span>'


def _key(*entries: tuple[str, str]) -> str:
    shown = "".join(
        f'<span><i class="{kind}"></i>{html.escape(name)}</span>' for kind, name in entries
    )
    return f'<p class="key">{shown}</p>'


def _curve(name: str, heading: str, step: str, points: Sequence[float]) -> str:
    """A panel: the curve is stretched to its place, its text is not."""
    finite = [value for value in points if math.isfinite(value)] or [0.0]
    low, high = min(finite), max(finite)
    places = [
        (100 * i / max(1, len(points) - 1), 95 - 90 * (value - low) / ((high - low) or 1.0))
        for i, value in enumerate(points)
        if math.isfinite(value)
    ]
    joined = "L".join(f"{x:.2f} {y:.2f}" for x, y in places)
    dots = "".join(f"M{x:.2f} {y:.2f}h0" for x, y in places)
    kind = " sparsity" if name == "sparsity" else ""
    label = html.escape(f"{heading}: from {points[0]:.4g} to {points[-1]:.4g}")
    return (
        f'<div class="curve"><span class="heading">{html.escape(heading)}: {points[-1]:.4g}</span>'
        f'<span class="ends"><span>{high:.4g}</span><span>{low:.4g}</span></span>'
        f'<svg viewBox="0 0 100 100" preserveAspectRatio="none" role="img" aria-label="{label}">'
        f'<path class="line{kind}" d="M{joined}"/><path class="points{kind}" d="{dots}"/></svg>'
        f'<span class="steps"><span>{step} 1</span><span>{len(points)}</span></span></div>'
    )
