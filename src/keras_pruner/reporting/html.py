"""One HTML page that stands alone: tables, and plots as inline SVG that follow light and dark."""

import html
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

INSTALL = 'Plots need matplotlib: pip install "keras-pruner[report]"'

# Matplotlib draws in these colours, each of which stands for a variable of the style sheet.
_INK, _SOFT, _PAPER = "#010101", "#020202", "#030303"
_FIRST, _SECOND = "#040404", "#050505"
_VARIABLES = {
    _INK: "--ink",
    _SOFT: "--soft",
    _PAPER: "--paper",
    _FIRST: "--first",
    _SECOND: "--second",
}

_STYLE = """
:root { color-scheme: light dark; --paper: #fff; --ink: #1f2328; --soft: #6b7480;
        --rule: #d5dae0; --first: #0a63c9; --second: #b1500c; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #14171b; --ink: #e3e7ec; --soft: #98a2ae; --rule: #353c45;
          --first: #6cb0ff; --second: #f2a15f; } }
body { max-width: 52rem; margin: 2.5rem auto; padding: 0 1.2rem; background: var(--paper);
       color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; margin: 0 0 1.5rem; overflow-wrap: anywhere; }
h2, caption, figcaption { font-size: 1.05rem; font-weight: 600; text-align: left; }
table, figure { margin: 0 0 2.2rem; }
figcaption, caption { padding: 0 0 .6rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .8rem .3rem 0; border-bottom: 1px solid var(--rule); text-align: left;
         font-size: .93rem; }
td { overflow-wrap: anywhere; }
th { color: var(--soft); font-weight: 500; }
.number { text-align: right; white-space: nowrap; }
tfoot td { font-weight: 600; }
p { color: var(--soft); }
svg { display: block; width: 100%; height: auto; }
svg text { font-family: system-ui, sans-serif !important; }
"""


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


def table(
    caption: str,
    columns: Sequence[str],
    rows: Iterable[Sequence[object]],
    totals: Iterable[Sequence[object]] = (),
) -> str:
    """A table; columns whose heading starts with ">" are right-aligned, as in `tables.render`."""
    right = [column.startswith(">") for column in columns]
    heads = _cells("th", [column.lstrip(">") for column in columns], right)
    body = "\n".join(f"<tr>{_cells('td', row, right)}</tr>" for row in rows)
    foot = "\n".join(f"<tr>{_cells('td', row, right)}</tr>" for row in totals)
    return (
        f'<div class="wide"><table><caption>{html.escape(caption)}</caption>\n'
        f"<thead><tr>{heads}</tr></thead>\n<tbody>\n{body}\n</tbody>\n"
        f"<tfoot>\n{foot}\n</tfoot></table></div>"
    )


def note(text: str) -> str:
    """A paragraph."""
    return f"<p>{html.escape(text)}</p>"


def figure(caption: str, svg: str) -> str:
    """A plot with its caption."""
    return f"<figure><figcaption>{html.escape(caption)}</figcaption>\n{svg}\n</figure>"


def bars(label: str, values: Sequence[tuple[str, float]]) -> str:
    """Fractions as horizontal bars, one below the other, as SVG."""
    drawing = _figure(1.0 + 0.32 * len(values))
    axes = drawing.subplots()
    positions = range(len(values))
    axes.barh(positions, [share for _, share in values], color=_FIRST, height=0.62)
    for position, (_, share) in zip(positions, values, strict=True):
        inside = share > 0.9
        axes.text(
            share - 0.008 if inside else share + 0.008,
            position,
            f"{share:.3f}",
            va="center",
            ha="right" if inside else "left",
            color=_PAPER if inside else _INK,
        )
    axes.set(xlim=(0, 1), xlabel=label, ylim=(len(values) - 0.4, -0.6))
    # A name may hold a dollar sign, which is no formula.
    axes.set_yticks(positions, [_short(name) for name, _ in values], parse_math=False)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x")
    return _svg(drawing, label)


def pairs(label: str, sides: tuple[str, str], values: Sequence[tuple[str, float, float]]) -> str:
    """Two horizontal bars for each name, one for each side, with their numbers, as SVG."""
    drawing = _figure(1.1 + 0.55 * len(values))
    axes = drawing.subplots()
    largest = max((number for _, *both in values for number in both), default=0.0) or 1.0
    for side, (name, color) in enumerate(zip(sides, (_SOFT, _FIRST), strict=True)):
        positions = [row + 0.36 * (side - 0.5) for row in range(len(values))]
        numbers = [both[side] for _, *both in values]
        axes.barh(positions, numbers, color=color, height=0.34, label=name)
        for position, number in zip(positions, numbers, strict=True):
            place = number + 0.01 * largest
            axes.text(place, position, f"{number:.3g}", va="center", color=_INK, fontsize=9)
    axes.set(xlim=(0, 1.12 * largest), xlabel=label, ylim=(len(values) - 0.4, -0.6))
    axes.set_yticks(range(len(values)), [_short(name) for name, *_ in values], parse_math=False)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x")
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, frameon=False, labelcolor=_INK)
    return _svg(drawing, label)


def lines(label: str, curves: Mapping[str, Sequence[float]]) -> str:
    """Curves over steps, each with a panel of its own, as SVG.

    A shorter one has no value for every step. For which is not known (`validation_freq` is not in
    a history), so that its panel counts the values themselves, and says so.
    """
    drawing = _figure(0.5 + 2.0 * len(curves))
    longest = max(map(len, curves.values()))
    alike = all(len(values) == longest for values in curves.values())
    panels = drawing.subplots(len(curves), 1, sharex=alike, squeeze=False)[:, 0]
    for panel, (name, values) in zip(panels, curves.items(), strict=True):
        is_short = len(values) < longest
        steps = range(1, len(values) + 1)
        color = _FIRST if name == "sparsity" else _SECOND
        panel.plot(steps, values, color=color, marker="o", markersize=4, linewidth=1.8)
        title = f"{name}, {len(values)} values over {longest} {label}s" if is_short else name
        panel.set_title(title, loc="left", fontsize=10, color=_INK, pad=10, parse_math=False)
        panel.grid(axis="y")
        panel.annotate(
            f"{values[-1]:.4g}",
            (len(values), values[-1]),
            xytext=(8, 0),
            textcoords="offset points",
            va="center",
            color=_INK,
        )
        panel.margins(y=0.15)
        panel.set_xlim(0.7, len(values) + 0.7)
        panel.xaxis.get_major_locator().set_params(integer=True)
        if not alike or panel is panels[-1]:
            panel.set_xlabel("value" if is_short else label)
    return _svg(drawing, " and ".join(curves))


def _cells(tag: str, values: Sequence[object], right: Sequence[bool]) -> str:
    return "".join(
        f'<{tag} class="number">{html.escape(str(value))}</{tag}>'
        if is_right
        else f"<{tag}>{html.escape(str(value))}</{tag}>"
        for value, is_right in zip(values, right, strict=True)
    )


def _short(name: str, length: int = 44) -> str:
    """The end of a long path, which tells more than its beginning."""
    return name if len(name) <= length else "…" + name[1 - length :]


def _figure(height: float) -> Any:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError(INSTALL) from None
    return Figure(figsize=(8.4, height), layout="constrained")


def _svg(drawing: Any, label: str) -> str:
    """The figure as an SVG element, in the colours of the page."""
    import matplotlib

    for axes in drawing.axes:
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.spines["bottom"].set_color(_SOFT)
        axes.tick_params(color=_SOFT, labelcolor=_INK, labelsize=9)
        axes.tick_params(axis="x", labelcolor=_SOFT)
        axes.xaxis.label.set_color(_SOFT)
        axes.set_axisbelow(True)
        for line in [*axes.get_xgridlines(), *axes.get_ygridlines()]:
            line.set(color=_SOFT, alpha=0.25, linewidth=0.8)
    out = io.StringIO()
    # Text stays text; the salt keeps the ids of two plots on one page apart.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": label}):
        metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        drawing.savefig(out, format="svg", transparent=True, metadata=metadata)
    svg = out.getvalue()
    svg = re.sub(r"<!--.*?-->", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    for color, variable in _VARIABLES.items():
        svg = svg.replace(color, f"var({variable})")
    return svg.replace("<svg", f'<svg role="img" aria-label="{html.escape(label)}"', 1)
