"""From the stored runs to `results.md` and `results.png`: every recipe beside what was published.

python examples/lib/results.py                      what lies in examples/results
python examples/lib/results.py DIR --output DIR     something else
"""

import argparse
import sys
import textwrap
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from lib import stored_runs
from lib.stored_runs import difference, summaries

HERE = Path(__file__).resolve().parents[1]  # examples
COLORS = {"ours": "C0", "tfmot": "C1", "distilled": "C2"}
MOST_LOST = 0.5  # points; what "6x smaller with minimal loss" may cost here
LEAST_RETAINED = 99  # per cent; 0.5 points are much of a low score
HEAD = (
    "# The published results, run here\n\n"
    "Made by `python examples/lib/results.py` from the lines in `examples/results/`, one for each "
    "run. Scores are per cent (accuracy, BLEU; whatever the table's second column says), the "
    "mean over the seeds; in brackets is the 95 % interval by Student's t, over the seeds or "
    "over the differences within a seed. Each recipe trains a network, then trains on from the "
    'same weights in several ways, for the same number of epochs: without pruning ("dense, '
    'longer"), pruned here, pruned by TFMOT 0.8.1 with the same batches. **Retained** is pruned '
    "/ the better of the two dense scores, chosen for each seed by the same test data, which "
    'flatters the dense side; "of the longer" divides by the dense network that was trained as '
    "long. Data and sizes are in the names: they are small, so the figures stand beside the "
    "published ones for what pruning costs, and not for the accuracy as such."
)


def cells(*values):
    """A row of a Markdown table."""
    return f"| {' | '.join(str(value) for value in values)} |"


def grid(columns, rows):
    """A Markdown table, or a word where there are no rows."""
    if not rows:
        return "No runs yet."
    return "\n".join([cells(*columns), cells(*["---"] * len(columns)), *(cells(*r) for r in rows)])


def published(everything):
    """Where a figure was published: what it kept, and what is kept here."""
    rows = [
        (
            name,
            each.measure,
            each.target_name,
            each.label,
            each.epochs,
            len(each.lines),
            f"{each.lines[0]['published dense']:g} → {each.lines[0]['published']:g}",
            f"{each.published_retained:.2f}",
            f"{each.dense_scores.mean:.2f} → {each.scores.spread}",
            each.retained,
            each.retained_of_longer,
        )
        for name, found in everything.items()
        for each in found
        if each.published_retained is not None
    ]
    columns = ["recipe", "measure", "zeros", "method", "epochs", "seeds", "published"]
    columns += ["retained, published"]
    return grid([*columns, "dense → pruned here", "retained here", "of the longer"], rows)


def paired(everything, method, against):
    """Points by which a method is above another at the same target, paired by seed."""
    rows = []
    for name, found in everything.items():
        for one in (each for each in found if each.method == method):
            for other in (each for each in found if each.method == against):
                alike = one.target == other.target and one.budget == other.budget
                same_way = other.allocation is None or one.way == other.way
                between = difference(one, other) if alike and same_way else None
                if between is not None and len(between.values) > 1:
                    rows.append(
                        (
                            name,
                            one.target_name,
                            one.label,
                            len(between.values),
                            f"{one.dense_scores.mean:.2f}",
                            f"{one.scores.mean:.2f}",
                            f"{other.scores.mean:.2f}",
                            between,
                            "yes" if between.low > 0 else "no",
                        )
                    )
    columns = ["recipe", "zeros", "here", "seeds", "dense", method, against]
    return grid([*columns, "difference, points", "above zero"], rows)


def smallest(everything, kind=""):
    """For each recipe the smallest file that costs at most `MOST_LOST` points, on the mean.

    It must retain `LEAST_RETAINED`, too.

    `kind`: "" for exact files, ", float16" for those with rounded kernels.
    """
    rows = []
    for name, found in everything.items():
        good = [
            each
            for each in found
            if each.method in ("ours", "distilled")
            and len(each.lines) > 1
            and (lost := each.lost("score" + kind)) is not None
            and lost.mean <= MOST_LOST + 1e-9  # the mean of floats
            and each.retained.mean >= LEAST_RETAINED
        ]
        if not good:
            continue
        size = "bytes" + kind
        best = max(good, key=lambda each: each.ratio(size))
        rows.append(
            (
                name,
                best.target_name,
                best.label,
                len(best.lines),
                best.lost("score" + kind),
                f"{best.dense_mean('bytes, plain'):,.0f}",
                f"{best.dense_mean('bytes'):,.0f}",
                f"{best.mean(size):,.0f}",
                f"{best.ratio(size):.1f}",
                f"{best.dense_mean('bytes, plain') / best.mean(size):.1f}",
            )
        )
    columns = ["recipe", "zeros", "method", "seeds", "lost, points", "plain dense .keras, bytes"]
    columns += ["dense, save_compressed", "pruned, save_compressed", "compressed / compressed"]
    return grid([*columns, "plain / compressed"], rows)


def all_runs(everything):
    """Every setting, in full."""
    rows = [
        (
            name,
            each.target_name,
            each.label,
            each.epochs,
            len(each.lines),
            f"{each.mean('zeros'):.4f}",
            each.dense_scores.spread,
            each.scores.spread,
            each.retained,
            f"{each.mean('bytes'):,.0f}",
            f"{each.ratio():.2f}",
            f"{each.mean('seconds'):.0f}",
            each.lines[0]["backend"],
        )
        for name, found in everything.items()
        for each in found
    ]
    columns = ["recipe", "zeros", "method", "epochs", "seeds", "zeros found", "dense", "pruned"]
    return grid([*columns, "retained", "bytes", "ratio", "seconds", "backend"], rows)


def page(everything, picture):
    """The whole of results.md."""
    return "\n\n".join(
        [
            HEAD,
            "## Retained, beside what was published",
            published(everything),
            "What is known of GNMT on short messages stands at the top of `translation.py`.",
            "## Against TFMOT, with the same budget",
            paired(everything, "ours", "tfmot"),
            "## What distillation from the dense network adds",
            "The teacher is the dense network that everything starts from. Where training on makes "
            "the student better than that, as on MNIST, the teacher holds it back.",
            paired(everything, "distilled", "ours"),
            f"## The smallest file at a loss of at most {MOST_LOST:g} points, "
            f"and {100 - LEAST_RETAINED} % of the score",
            "Every weight as it was trained:",
            smallest(everything),
            'Kernels rounded to float16, `save_compressed(weights="float16")`; the score is that '
            "of the weights read back from the file, the dense network's that of its float32:",
            smallest(everything, ", float16"),
            "## Accuracy against sparsity",
            f"![Score against sparsity, a panel for each recipe]({picture})",
            "## All runs",
            all_runs(everything),
            "Seconds are those of the training alone, on machines that did other things beside it: "
            "no measure of speed. TFMOT leaves some zeros as -0.0; the bytes of its runs up to "
            "2026-11-26 hold those signs, up to a bit each, which `save_compressed` drops since "
            "then.",
        ]
    )


def draw(everything, path):
    """A panel for each recipe: score against sparsity, a line for each method and its epochs."""
    from matplotlib.figure import Figure

    columns = min(3, len(everything))
    rows = -(-len(everything) // columns)
    figure = Figure(figsize=(4.6 * columns, 3.3 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in panels[len(everything) :]:
        axes.axis("off")
    for axes, (name, found) in zip(panels, everything.items(), strict=False):
        several = len({each.epochs for each in found}) > 1
        marks = iter("o^vDPX*<>" * len(found))
        for label, epochs in dict.fromkeys((each.label, each.epochs) for each in found):
            mine = [each for each in found if (each.label, each.epochs) == (label, epochs)]
            label += f", {epochs}" if several else ""
            line = sorted((e for e in mine if e.sparsity is not None), key=lambda e: e.sparsity)
            points(axes, line, f"{next(marks)}-", label)
            for target in dict.fromkeys(e.target for e in mine if e.sparsity is None):
                points(axes, [e for e in mine if e.target == target], "s", f"{label}, {target}")
        axes.axhline(found[0].dense_scores.mean, color="0.5", linestyle="--", label="dense")
        measure = textwrap.fill(f"{found[0].measure}, per cent", 32)
        axes.set(title=textwrap.fill(name, 48), xlabel="zeros, per cent", ylabel=measure)
        axes.title.set_fontsize("small")
        axes.grid(alpha=0.25)
        axes.legend(fontsize="x-small")
    figure.savefig(path, dpi=100)


def points(axes, found, mark, label):
    """The scores of some rows over the zeros that were found, with their intervals."""
    if found:
        axes.errorbar(
            [100 * each.mean("zeros") for each in found],
            [each.scores.mean for each in found],
            [each.scores.half if len(each.lines) > 1 else 0 for each in found],
            fmt=mark,
            color=COLORS[found[0].method],
            capsize=3,
            label=label,
        )


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("results", nargs="?", type=Path, default=HERE / "results")
    parser.add_argument("--output", type=Path, default=HERE, metavar="DIR")
    options = parser.parse_args()
    files = sorted(options.results.glob("*.jsonl"))
    everything = {}
    for path in files:
        lines = stored_runs.read(path)
        if found := summaries(lines):
            everything[lines[0]["recipe"]] = found
    if not everything:
        raise SystemExit(f"No finished runs in {options.results}: `make results` makes them.")
    options.output.mkdir(parents=True, exist_ok=True)
    draw(everything, options.output / "results.png")
    text = page(everything, "results.png")
    (options.output / "results.md").write_text(text + "\n", encoding="utf-8")
    print(f"{sum(map(len, everything.values()))} rows of {len(everything)} recipes")


if __name__ == "__main__":
    main()
