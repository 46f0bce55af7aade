"""What the recipes share: their options, what a run is, and how runs are stored and resumed.

A recipe is a value: data, network, score and budget. `run` trains the dense network, continues
from its weights by each requested method, and appends one line to the results after each. Methods
that have a line are skipped, so an interrupted run continues where it stopped.

dense           trained for `dense_epochs`; everything else starts from these weights
dense, longer   trained for another `pruning_epochs` without pruning
ours            pruned and refitted at once, then trained for `pruning_epochs` with the zeros kept;
                with --start gradual: pruned during `pruning_epochs`, until --prune-until of them
distilled       the same, with the dense network as teacher
tfmot           pruned by TFMOT during `pruning_epochs`, with the same batches in the same order

"Retained" is the score of the pruned network / the better of the two dense scores.
"""

import argparse
import dataclasses
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lib import stored_runs

METHODS = ("ours", "distilled", "tfmot")
PATTERNS = ("unstructured", "2:4", "4x1")
ALLOCATIONS = ("lamp", "erk", "global", "uniform")
PRUNE_UNTIL = 0.75  # of the second part of a training, if gradual
HERE = Path(__file__).resolve().parents[1]  # examples


@dataclasses.dataclass(frozen=True)
class Arrays:
    """Training rows in memory: x and y are arrays, or tuples of arrays of the same length."""

    x: Any
    y: Any

    def __len__(self):
        return len(self.x[0] if isinstance(self.x, tuple) else self.x)

    def take(self, index):
        """Return x and y of the rows with these numbers."""
        return tuple(
            tuple(a[index] for a in part) if isinstance(part, tuple) else part[index]
            for part in (self.x, self.y)
        )


@dataclasses.dataclass(frozen=True)
class Data:
    """Training and test data.

    Attributes:
        train: `Arrays`, or anything with `len(train)` and `train.take(index) -> x, y`.
        test: the argument of the recipe's `score`; x and y for `accuracy`.
        source: a short description of the data.
        facts: other values that `build` needs: classes, words, ...
    """

    train: Any
    test: Any
    source: str
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Budget:
    """Epochs, batch size and learning rates; rates decay to zero as a cosine in both parts."""

    dense_epochs: int
    pruning_epochs: int
    batch: int = 64
    dense_rate: float = 2e-3
    pruning_rate: float = 1e-3


@dataclasses.dataclass(frozen=True)
class Target:
    """Sparsity and pattern. The name is "0.8", "2:4" or "4x1 0.8"."""

    sparsity: float
    pattern: str = "unstructured"

    @property
    def name(self):
        if self.pattern == "2:4":
            return self.pattern
        return f"{'' if self.pattern == 'unstructured' else self.pattern + ' '}{self.sparsity:g}"


def adam(keras, rate):
    """The optimizer of most recipes."""
    return keras.optimizers.Adam(rate)


@dataclasses.dataclass(frozen=True)
class Recipe:
    """One row of the published table, or a model beside it.

    Functions with an argument `keras` receive Keras 3 or, under TFMOT, tf_keras.

    Attributes:
        name: the name in the results; it differs for each size and data set.
        data: seed -> data. Called on both sides, so it imports neither Keras nor libraries that
            only compute features; `datasets.cached` stores features.
        build: keras, data -> model, not compiled.
        score: model, data -> a score; higher is better, 0 means nothing was learned. Or a dict of
            scores, among them `measure`; the others are stored beside it.
        budget: epochs, batch and rates.
        measure: the name of the score.
        loss: a loss for `compile`, or keras -> loss.
        optimizer: keras, learning rate (a schedule) -> optimizer.
        published: "dense" or a target's name -> the published figure, per cent or BLEU.
        left_alone: regex of the names of layers that are not pruned.
        tfmot: whether TFMOT can prune the model.
    """

    name: str
    data: Callable[[int], Data]
    build: Callable[[Any, Data], Any]
    score: Callable[[Any, Data], float | dict[str, float]]
    budget: Budget
    measure: str = "accuracy"
    loss: Any = "sparse_categorical_crossentropy"
    optimizer: Callable[[Any, Any], Any] = adam
    published: Mapping[str, float] = dataclasses.field(default_factory=dict)
    left_alone: str | None = None
    tfmot: bool = True

    def scores(self, model, data):
        """The score as "score", and what else is measured."""
        found = self.score(model, data)
        others = dict(found) if isinstance(found, dict) else {self.measure: found}
        return {"score": others.pop(self.measure), **others}

    def loss_of(self, keras):
        """The loss, made with this Keras."""
        return self.loss(keras) if callable(self.loss) else self.loss

    def leaves_alone(self, layer):
        """Whether the layer with this name is left alone."""
        return bool(self.left_alone and re.search(self.left_alone, layer))


def accuracy(model, data):
    """The fraction of the test rows whose largest output (or sign) is correct."""
    x, y = data.test
    out = np.asarray(model.predict(x, batch_size=256, verbose=0))
    found = out.argmax(-1) if out.shape[-1] > 1 else out[..., 0] > 0.5
    return float(np.mean(found == y))


def order(seed, rows, budget, epochs):
    """The rows of every batch of a training, shape (steps, batch); the same on both sides."""
    batch = min(budget.batch, rows)
    whole = rows // batch * batch
    rng = np.random.default_rng(seed)
    shuffled = [rng.permutation(rows)[:whole] for _ in range(epochs)]
    return np.concatenate(shuffled).reshape(-1, batch)


# ---------------------------------------------------------------------- the command line


def parser(text, *, sparsity=(0.8, 0.9, 0.95), pattern=("unstructured",)):
    """The options of all recipes; each script adds its own."""
    made = argparse.ArgumentParser(
        description=text, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--data", metavar="PATH", help="your copy of the data, described above")
    made.add_argument("--sparsity", nargs="+", type=float, default=list(sparsity))
    made.add_argument("--pattern", nargs="+", choices=PATTERNS, default=list(pattern))
    made.add_argument("--allocation", choices=ALLOCATIONS, default="lamp")
    made.add_argument(
        "--start",
        choices=["at once", "gradual"],
        default="at once",
        help="prune and refit before training on, or prune while training on",
    )
    made.add_argument(
        "--prune-until",
        type=float,
        default=PRUNE_UNTIL,
        metavar="SHARE",
        help="with --start gradual: the fraction of the second part at which pruning ends; "
        f"under TFMOT always {PRUNE_UNTIL:g}",
    )
    made.add_argument("--seeds", type=int, default=3)
    made.add_argument("--methods", nargs="*", choices=METHODS, default=["ours"])
    made.add_argument(
        "--epochs", nargs=2, type=int, metavar=("DENSE", "PRUNING"), help="in place of the recipe's"
    )
    made.add_argument("--smoke", action="store_true", help="a very short run, to see that it works")
    made.add_argument(
        "--tfmot-python",
        default=os.environ.get("TFMOT_PYTHON"),
        metavar="PYTHON",
        help="the Python of an environment with tensorflow-model-optimization 0.8.1 and tf-keras",
    )
    made.add_argument("--results", type=Path, default=HERE / "results", metavar="DIR")
    made.add_argument(
        "--work", type=Path, default=HERE / ".work", metavar="DIR", help="trained weights, features"
    )
    made.add_argument("--jobs", type=Path, help=argparse.SUPPRESS)  # for TFMOT's process
    return made


def targets(options):
    """The targets given by --sparsity and --pattern."""
    return [
        Target(sparsity, pattern)
        for pattern in options.pattern
        for sparsity in ([0.5] if pattern == "2:4" else options.sparsity)
    ]


def budget(options, usual):
    """The recipe's budget, changed by --epochs; for --smoke one epoch each, in small batches."""
    if options.smoke:
        return dataclasses.replace(usual, dense_epochs=1, pruning_epochs=1, batch=16)
    if not options.epochs:
        return usual
    dense, pruning = options.epochs
    return dataclasses.replace(usual, dense_epochs=dense, pruning_epochs=pruning)


def start_name(options):
    """How pruning starts, as written in the results: "at once", "gradual", "gradual until 0.3"."""
    if options.start == "gradual" and options.prune_until != PRUNE_UNTIL:
        return f"gradual until {options.prune_until:g}"
    return options.start


def check(options):
    """Apply --smoke to the other options; refuse options that contradict each other."""
    if options.smoke:
        options.seeds = 1
        options.sparsity = options.sparsity[-1:]
    if wrong := [s for s in options.sparsity if not 0 <= s < 1]:
        raise SystemExit(
            "--sparsity is a fraction, from 0 up to but not 1: 0.8 for 80 %. Received: "
            f"{' '.join(f'{s:g}' for s in wrong)}."
        )
    if options.epochs and (options.epochs[0] < 0 or options.epochs[1] < 1):
        raise SystemExit(
            "--epochs: DENSE may be 0; PRUNING must be at least 1, because every method trains. "
            f"Received: {options.epochs[0]} {options.epochs[1]}."
        )
    if not 0 < options.prune_until <= 1:
        raise SystemExit(
            f"--prune-until is a share of the training, above 0 and at most 1. "
            f"Received: {options.prune_until:g}."
        )
    if "tfmot" in options.methods and not options.tfmot_python:
        raise SystemExit(
            "--methods tfmot needs --tfmot-python, or TFMOT_PYTHON: the Python of an environment "
            'made with `pip install "tensorflow-model-optimization==0.8.1" tf-keras`.'
        )


# ---------------------------------------------------------------------- running


def run(options, recipes):
    """Run what has no stored line yet for each recipe, and print its table."""
    check(options)
    if options.jobs:
        from lib import tfmot_side

        tfmot_side.work(options.jobs, {recipe.name: recipe for recipe in recipes})
        return
    for recipe in recipes:
        path = options.results / f"{file_name(recipe.name)}.jsonl"
        Run(recipe, options, path).go()
        print(stored_runs.table(stored_runs.read(path)), flush=True)


def file_name(name):
    """A recipe's name as a file name."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


@dataclasses.dataclass(frozen=True)
class Run:
    """One recipe with the options of a command."""

    recipe: Recipe
    options: argparse.Namespace
    path: Path

    def go(self):
        """Every seed and method that has no line yet."""
        from lib import training

        self.check_source(self.recipe.data(0).source)
        here = [method for method in self.options.methods if method != "tfmot"]
        for seed in range(self.options.seeds):
            todo = [
                (method, target)
                for target in targets(self.options)
                for method in here
                if self.missing(seed, method, target)
            ]
            before = [name for name in ("dense", "dense, longer") if self.missing(seed, name)]
            if not todo and not before:
                continue
            side = training.Side(self.recipe, seed, self.start(seed), self.options)
            for name in before:
                self.note(side.dense() if name == "dense" else side.longer(), seed, name)
            for method, target in todo:
                self.note(side.pruned(method, target), seed, method, target)
        if "tfmot" in self.options.methods and self.recipe.tfmot:
            self.under_tfmot(training)

    def check_source(self, source):
        """Refuse stored runs on other data with the same budget: they would count as done."""
        budget = dataclasses.asdict(self.recipe.budget)
        for line in stored_runs.read(self.path):
            theirs = line.get("source", source)
            same = (
                theirs.partition(";")[0] == source.partition(";")[0]
            )  # numbers follow the semicolon
            if line["budget"] == budget and not same:
                raise SystemExit(
                    f"{self.path} holds runs on other data: {theirs!r}. Received: "
                    f"{source!r}. Give this data directories of its own: --results and --work."
                )

    def under_tfmot(self, training):
        """Run TFMOT's jobs in a process of their own; their weights are scored here."""
        from lib import tfmot_side

        jobs = [
            tfmot_side.Job(self.recipe.name, seed, self.start(seed), target)
            for seed in range(self.options.seeds)
            for target in targets(self.options)
            if self.missing(seed, "tfmot", target)
        ]
        for seed in {job.seed for job in jobs if not job.start.exists()}:
            training.Side(self.recipe, seed, self.start(seed), self.options).dense()
        for job, weights, seconds in tfmot_side.run(jobs, self.options):
            side = training.Side(self.recipe, job.seed, job.start, self.options)
            found = side.measured_with(weights, seconds)
            self.note(found, job.seed, "tfmot", job.target)

    def start(self, seed):
        """The file with the dense weights of a seed."""
        b = self.recipe.budget
        budget = f"{b.dense_epochs}-{b.batch}-{b.dense_rate:g}"
        return self.options.work / f"{file_name(self.recipe.name)}-{budget}-{seed}.npz"

    def key(self, seed, method, target=None):
        """The fields that identify a line."""
        chosen = {}
        if target is not None:
            chosen = {"target": target.name}
            if method != "tfmot":
                split = self.options.allocation if target.pattern != "2:4" else "uniform"
                chosen |= {"allocation": split, "start": start_name(self.options)}
        budget = dataclasses.asdict(self.recipe.budget)
        return {
            "recipe": self.recipe.name,
            "seed": seed,
            "method": method,
            **chosen,
            "budget": budget,
        }

    def missing(self, seed, method, target=None):
        """Whether it has no line yet."""
        key = self.key(seed, method, target)
        return not any(key.items() <= line.items() for line in stored_runs.read(self.path))

    def note(self, found, seed, method, target=None):
        """Store the line of a run."""
        name = "dense" if target is None else target.name
        line = self.key(seed, method, target)
        line |= {"measure": self.recipe.measure, "published": self.recipe.published.get(name)}
        line |= {"published dense": self.recipe.published.get("dense")}
        stored_runs.append(self.path, line | found)
