"""Draws the pictures of these pages: `python docs/draw.py`, with matplotlib installed."""

import sys
from pathlib import Path

import keras
import numpy as np
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure

import keras_pruner as kp
from keras_pruner.cli import demo

HERE = Path(__file__).parent
RESULTS = HERE.parent / "examples" / "results"
sys.path.insert(0, str(HERE.parent / "examples"))
from lib import stored_runs  # noqa: E402

BLUE, ORANGE, GREY = "#0a63c9", "#d9730d", "#6b7480"
PAPER, GONE = "#ffffff", "#e9ecf0"


def schedules() -> None:
    """The sparsity of three schedules at each step, with the updates of the cubic one."""
    figure = Figure(figsize=(8, 3.4), layout="constrained", facecolor=PAPER)
    axes = figure.subplots()
    steps = range(1300)
    cubic = kp.PolynomialDecay(0.8, initial_sparsity=0.0, begin_step=100, end_step=1000)
    linear = kp.PolynomialDecay(0.8, initial_sparsity=0, begin_step=100, end_step=1000, power=1)
    constant = kp.ConstantSparsity(0.8, begin_step=100)
    named = {"cubic (power=3)": cubic, "linear (power=1)": linear, "constant": constant}
    for (name, schedule), style in zip(named.items(), ("-", "--", ":"), strict=True):
        values = [schedule.sparsity_at(s) if s >= schedule.begin_step else 0 for s in steps]
        axes.plot(steps, values, style, color=BLUE if style == "-" else GREY, label=name)
    marked = [s for s in steps if cubic.updates_at(s)][::9]
    axes.plot(marked, [cubic.sparsity_at(s) for s in marked], "o", color=BLUE, markersize=4)
    axes.set(xlabel="step", ylabel="sparsity", ylim=(0, 0.9))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, loc="lower right")
    figure.savefig(HERE / "schedules.png", dpi=110)


def patterns() -> None:
    """What each pattern keeps of one small trained kernel, at half of its weights."""
    x, y, *_ = demo.digits(2000)
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            keras.layers.AveragePooling2D(7),
            keras.layers.Flatten(),
            keras.layers.Dense(12, activation="relu"),
            keras.layers.Dense(10),
        ]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.01), loss)
    model.fit(x, y, epochs=5, verbose=0)
    kernel = np.abs(model.layers[2].get_weights()[0])
    shown = [kp.Unstructured(), kp.Block((4, 1)), kp.NM(2, 4), kp.Channel(-1)]
    figure = Figure(figsize=(10, 3.6), layout="constrained", facecolor=PAPER)
    panels = figure.subplots(1, 5)
    panels[0].imshow(kernel, cmap="Blues")
    panels[0].set_title("|weights|", fontsize=10)
    for panel, pattern in zip(panels[1:], shown, strict=True):
        mask = pattern(kernel, 0.5)
        panel.imshow(mask, cmap=ListedColormap([GONE, BLUE]), vmin=0, vmax=1)
        panel.set_title(repr(pattern).replace("pooling='mean'", "…"), fontsize=8)
        panel.set_xticks(np.arange(-0.5, 12), [])
        panel.set_yticks(np.arange(-0.5, 16), [])
        panel.grid(color=PAPER, linewidth=0.8)
        panel.tick_params(length=0)
    for panel in panels:
        panel.spines[:].set_visible(False)
        panel.set_xlabel("outputs", color=GREY, fontsize=9)
    panels[0].set(xticks=[], yticks=[])
    panels[0].set_ylabel("inputs", color=GREY, fontsize=9)
    figure.savefig(HERE / "patterns.png", dpi=110)


def overview() -> None:
    """The picture of the README: accuracy against the size of the file and against the zeros."""
    figure = Figure(figsize=(9, 3.3), layout="constrained", facecolor=PAPER)
    size, zeros = figure.subplots(1, 2)
    # Without TFMOT: the signs that its runs left on zeros made their files larger.
    ours = {"ours": (BLUE, "keras-pruner")}
    _accuracy(
        size, "mnist-cnn", lambda run: run.dense_mean("bytes, plain") / run.mean("bytes"), ours
    )
    size.set(
        title="CNN for digits: 3.3 M weights",
        xlabel="times smaller than the plain dense file (zeros beside the points)",
    )
    both = ours | {"tfmot": (ORANGE, "TFMOT")}
    _accuracy(zeros, "mobilenet-v2-0-25-fashion-mnist", lambda run: 100 * run.mean("zeros"), both)
    zeros.set(title="MobileNetV2 0.25: clothes", xlabel="zeros, %")
    figure.savefig(HERE / "overview.png", dpi=140)


def _accuracy(axes, name, x, methods) -> None:
    """Draw the accuracy of the runs of a recipe against `x`, a function of a run.

    `methods`: those to show -> their color and label.
    """
    found = stored_runs.summaries(stored_runs.read(RESULTS / f"{name}.jsonl"))
    for method, (color, label) in methods.items():
        runs = sorted((r for r in found if r.method == method and r.sparsity), key=x)
        points = [(x(run), run.scores.mean) for run in runs]
        axes.plot(*zip(*points, strict=True), "o-", color=color, label=label)
        for run, point in zip(runs, points, strict=True):
            axes.annotate(
                run.target_name,
                point,
                (-4, -14),
                fontsize=8,
                textcoords="offset points",
                color=color,
            )
    axes.axhline(found[0].dense_scores.mean, color=GREY, linestyle="--", label="dense")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    low, high = axes.get_ylim()
    axes.set(ylabel="accuracy, %", ylim=(min(low - 0.15 * (high - low), high - 5), high))
    axes.legend(frameon=False, loc="lower left", fontsize=9)


if __name__ == "__main__":
    schedules()
    patterns()
    overview()
