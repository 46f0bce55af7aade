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
    """Accuracy against the size of the file and against the zeros, beside TFMOT: the README's."""
    figure = Figure(figsize=(9, 3.3), layout="constrained", facecolor=PAPER)
    left, right = figure.subplots(1, 2)
    _against_size(left, "mnist-cnn", "CNN for digits: 3.3 M weights")
    _against_zeros(right, "mobilenet-v2-0-25-fashion-mnist", "MobileNetV2 0.25: clothes")
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
        axes.set_ylabel("accuracy, %")
        axes.legend(frameon=False, loc="lower left", fontsize=9)
    figure.savefig(HERE / "overview.png", dpi=140)


def _runs(name, method):
    """The settings of a method with a sparsity, most dense first; the longest where several."""
    lines = stored_runs.read(HERE.parent / "examples" / "results" / f"{name}.jsonl")
    found = [s for s in stored_runs.summaries(lines) if s.method == method and s.sparsity]
    return sorted(found, key=lambda each: each.sparsity)


def _against_size(axes, name, title) -> None:
    for method, color, label in (("ours", BLUE, "keras-pruner"), ("tfmot", ORANGE, "TFMOT")):
        runs = _runs(name, method)
        plain = runs[0].dense_mean("bytes, plain")
        sizes = [plain / each.mean("bytes") for each in runs]
        axes.plot(sizes, [each.scores.mean for each in runs], "o-", color=color, label=label)
        for each, size in zip(runs, sizes, strict=True):
            axes.annotate(each.target_name, (size, each.scores.mean), (-4, -14), fontsize=8,
                          textcoords="offset points", color=color)  # fmt: skip
    axes.axhline(runs[0].dense_scores.mean, color=GREY, linestyle="--", label="dense")
    axes.set(title=title, xlabel="times smaller than the plain dense file")


def _against_zeros(axes, name, title) -> None:
    for method, color, label in (("ours", BLUE, "keras-pruner"), ("tfmot", ORANGE, "TFMOT")):
        runs = _runs(name, method)
        zeros = [100 * each.mean("zeros") for each in runs]
        axes.plot(zeros, [each.scores.mean for each in runs], "o-", color=color, label=label)
    axes.axhline(runs[0].dense_scores.mean, color=GREY, linestyle="--", label="dense")
    axes.set(title=title, xlabel="zeros, %")


if __name__ == "__main__":
    schedules()
    patterns()
    overview()
