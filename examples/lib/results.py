"""Make the pages of results from the stored runs: one beside the published table, one with all.

python examples/lib/results.py                      the runs in examples/results, into docs/
python examples/lib/results.py DIR --output DIR     other runs
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
MOST_LOST = 0.5  # points; the loss allowed for "6x smaller with minimal loss"
LEAST_RETAINED = 99  # per cent; 0.5 points are a large part of a low score
FEWEST_SEEDS = 3
RECIPES = {  # how the name of a published network begins -> its recipe
    "InceptionV3": "imagenet.py --model inception",
    "MobileNet V1": "imagenet.py --model v1",
    "MobileNet V2": "imagenet.py --model v2",
    "GNMT en-de": "translation.py --direction en-de",
    "GNMT de-en": "translation.py --direction de-en",
    "DS-CNN-L": "keyword_spotting.py --size L",
}
TERMS = (
    "- Scores are per cent (accuracy, BLEU, ...), the mean over the seeds.\n"
    "- Brackets hold the 95 % interval by Student's t, over the seeds or over the differences "
    "within each seed.\n"
    "- Data and sizes are in the names. They are small. Compare what pruning costs with the "
    "published results, not the scores themselves."
)


def cells(*values):
    """A row of a Markdown table."""
    return f"| {' | '.join(str(value) for value in values)} |"


def grid(columns, rows):
    """A Markdown table, or `No runs yet.` where there are no rows."""
    if not rows:
        return "No runs yet."
    return "\n".join([cells(*columns), cells(*["---"] * len(columns)), *(cells(*r) for r in rows)])


def longest(found):
    """For each target the row of this package with enough seeds that was trained longest."""
    ours = [each for each in found if each.method == "ours" and each.published_retained]
    rows = [each for each in ours if len(each.lines) >= FEWEST_SEEDS]
    return list({each.target: each for each in sorted(rows, key=trained_for)}.values())


def trained_for(each):
    """Epochs before and while pruning, together."""
    budget = dict(each.budget)
    return budget["dense_epochs"] + budget["pruning_epochs"]


def published(everything):
    """The published rows: the retained accuracy there and here, and which falls short."""
    rows, seen = [], set()
    for name, found in everything.items():
        for each in longest(found):
            recipe = next((key for key in RECIPES if name.startswith(key)), None)
            seen.add(recipe)
            short = each.published_retained - each.retained_of_longer.mean
            rows.append(
                (
                    name,
                    each.target_name,
                    f"{each.lines[0]['published dense']:g} → {each.lines[0]['published']:g}",
                    f"{each.published_retained:.1f}",
                    f"**{each.retained_of_longer.mean:.1f}** "
                    f"({each.retained_of_longer.low:.1f} to {each.retained_of_longer.high:.1f})",
                    len(each.lines),
                    "yes" if short <= 0 else f"short by {short:.1f}",
                    f"`{RECIPES.get(recipe, name)}`",
                )
            )
    missing = [f"{name} (`{RECIPES[name]}`)" for name in RECIPES if name not in seen]
    columns = ["network and data", "zeros", "published: dense → pruned", "retained, published"]
    columns += ["retained here, % (95 %)", "seeds", "as much", "recipe"]
    text = grid(columns, rows)
    return text + (f"\n\nNot trained here so far: {', '.join(missing)}." if missing else "")


def published_in_full(everything):
    """All budgets of the published rows, beside both dense scores."""
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


def against_tfmot(everything):
    """One sentence: how often this package is above TFMOT, and below it."""
    found = [between for *_, between in pairs(everything, "ours", "tfmot")]
    if not found:
        return "No pairs with TFMOT yet."
    above = sum(each.low > 0 for each in found)
    below = sum(each.high < 0 for each in found)
    return (
        f"Beside TFMOT 0.8.1, from the same dense weights with the same batches and epochs: "
        f"{len(found)} settings, {above} where this package is more accurate (the whole interval "
        f"lies above zero), {below} where it is less; the others cannot be told apart."
    )


def pairs(everything, method, against):
    """Recipe, both settings, and their difference in points, paired by seed, at each target."""
    for name, found in everything.items():
        for one in (each for each in found if each.method == method):
            for other in (each for each in found if each.method == against):
                alike = one.target == other.target and one.budget == other.budget
                same_way = other.allocation is None or one.way == other.way
                between = difference(one, other) if alike and same_way else None
                if between is not None and len(between.values) > 1:
                    yield name, one, other, between


def paired(everything, method, against):
    """The table of these differences."""
    rows = [
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
        for name, one, other, between in pairs(everything, method, against)
    ]
    columns = ["recipe", "zeros", "here", "seeds", "dense", method, against]
    return grid([*columns, "difference, points", "above zero"], rows)


def smallest(everything, kind=""):
    """For each recipe the smallest file that loses at most `MOST_LOST` points on average.

    It must also retain `LEAST_RETAINED` per cent.

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
    """All settings."""
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


def short_page(everything):
    """The text of results.md: one screen."""
    return "\n\n".join(
        [
            "# Results beside the published table",
            "Every recipe trains a network and goes on from its weights without pruning and with "
            "it, for the same number of epochs. **Retained** is the score of the pruned network "
            "divided by that of the dense one trained as long. Of several lengths of training "
            "the longest counts.",
            published(everything),
            against_tfmot(everything),
            TERMS,
            "The recipes are in `examples/recipes/`; `make results` runs them all, and "
            "`python examples/lib/results.py` makes these pages. [All runs](results-all.md): "
            "other lengths, differences to TFMOT, distillation, the smallest files.",
        ]
    )


def long_page(everything, picture):
    """The text of results-all.md."""
    return "\n\n".join(
        [
            "# All results",
            "Made by `python examples/lib/results.py` from the stored runs in `examples/results/`, "
            "one line each. [The short page](results.md) says how they are made.",
            TERMS,
            "## Published rows, all lengths",
            "**Retained** divides by the better of the two dense scores. The better one is chosen "
            'for each seed on the same test data, which favours the dense side. "Of the longer" '
            "divides by the dense network that was trained for as long.",
            published_in_full(everything),
            "## Against TFMOT, with the same budget",
            paired(everything, "ours", "tfmot"),
            "## What distillation from the dense network adds",
            "The teacher is the dense network that everything starts from. If further "
            "training makes the student better than the teacher, as on MNIST, the teacher holds it "
            "back.",
            paired(everything, "distilled", "ours"),
            f"## The smallest file at a loss of at most {MOST_LOST:g} points, "
            f"and {100 - LEAST_RETAINED} % of the score",
            "All weights in float32:",
            smallest(everything),
            'Kernels rounded to float16, `save_compressed(weights="float16")`. The pruned score is '
            "measured with the weights of the file, the dense score with float32 weights:",
            smallest(everything, ", float16"),
            "## Accuracy against sparsity",
            f"![Score against sparsity, a panel for each recipe]({picture})",
            "## All runs",
            all_runs(everything),
            "Seconds are the training time on machines with other jobs, so they do not measure "
            "speed. TFMOT stores some zeros as -0.0. Up to 2026-11-26 these signs took up to one "
            "bit each in the files of its runs; since then `save_compressed` drops them.",
        ]
    )


def draw(everything, path):
    """One panel per recipe: score against sparsity, one line per method and number of epochs."""
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
    """Plot the scores of some rows against the measured sparsity, with intervals."""
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
    parser.add_argument("--output", type=Path, default=HERE.parent / "docs", metavar="DIR")
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
    pages = {"results": short_page(everything), "results-all": long_page(everything, "results.png")}
    for name, text in pages.items():
        (options.output / f"{name}.md").write_text(text + "\n", encoding="utf-8")
    print(f"{sum(map(len, everything.values()))} rows of {len(everything)} recipes")


if __name__ == "__main__":
    main()
