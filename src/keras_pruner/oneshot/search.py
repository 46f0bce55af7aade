"""How far a model can be pruned: the sparsity a bound allows, and what each weight bears."""

import dataclasses
import numbers
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from keras_pruner.allocations import PerWeight
from keras_pruner.model_weights import check_model
from keras_pruner.oneshot.calibration import Calibration, Samples
from keras_pruner.oneshot.listen import Values, undisturbed
from keras_pruner.oneshot.outputs import outputs_of, relative_error
from keras_pruner.oneshot.prune import mask_alone, prune
from keras_pruner.patterns import FixedPattern, fixed_conflict
from keras_pruner.reporting.report import Report
from keras_pruner.reporting.tables import Table
from keras_pruner.rules import Rules
from keras_pruner.validation import check_sparsity, shown

Metric = Callable[[keras.Model], float]


@dataclasses.dataclass(frozen=True)
class SparsityCurve(Report):
    """What `find_sparsity` has found; prints as a table.

    Attributes:
        sparsity: the largest one tried whose drop stays within the bound; 0 if none does.
        max_drop: the bound.
        dense: the metric of the dense model.
        points: (sparsity, metric) of everything that was tried, by rising sparsity.
    """

    sparsity: float
    max_drop: float
    dense: float
    points: tuple[tuple[float, float], ...]

    def headline(self) -> str:
        """The sparsity that was found."""
        return f"largest sparsity within a drop of {self.max_drop:g}: {self.sparsity:.4g}"

    def tables(self) -> list[Table]:
        """The metric at each sparsity that was tried."""
        rows = [
            (f"{s:.4f}", f"{m:.4f}", f"{self.dense - m:.4f}", "<" if s == self.sparsity else "")
            for s, m in self.points
        ]
        return [Table("", [">sparsity", ">metric", ">drop", ""], rows)]

    def plot(self, path: str | os.PathLike[str]) -> None:
        """Draw the curve into an image file; needs `pip install keras-pruner[report]`."""
        try:
            from matplotlib.figure import Figure
        except ImportError as error:
            raise ImportError(
                "Plots need matplotlib: `pip install keras-pruner[report]`."
            ) from error
        figure = Figure(figsize=(6, 4), layout="constrained")
        axes = figure.subplots()
        axes.plot(*zip((0.0, self.dense), *self.points, strict=True), marker="o")
        axes.axhline(self.dense - self.max_drop, linestyle=":", color="grey")
        axes.axvline(self.sparsity, linestyle=":", color="grey")
        axes.set(xlabel="sparsity", ylabel="metric")
        figure.savefig(path)


@dataclasses.dataclass(frozen=True)
class Sensitivity(Report):
    """The drop of a metric with one weight pruned at a time; prints as a table.

    Attributes:
        dense: the metric of the dense model.
        sparsities: that were tried.
        drops: by the weight's path, the drop at each sparsity.
    """

    dense: float
    sparsities: tuple[float, ...]
    drops: dict[str, tuple[float, ...]]

    def headline(self) -> str:
        """The metric of the dense model."""
        return f"drop from {self.dense:.4g}, most sensitive first"

    def tables(self) -> list[Table]:
        """The drop of each weight at each sparsity."""
        order = sorted(self.drops, key=lambda path: -self.drops[path][-1])
        rows = [(path, *(f"{drop:.4f}" for drop in self.drops[path])) for path in order]
        return [Table("", ["weight", *(f">{sparsity:g}" for sparsity in self.sparsities)], rows)]


def find_sparsity(
    model: keras.Model,
    calibration: Any,
    *,
    max_drop: float = 0.01,
    metric: Metric | None = None,
    tolerance: float = 0.01,
    highest: float = 0.98,
    **options: Any,
) -> SparsityCurve:
    """The largest sparsity at which a metric stays within a bound; the model is not changed.

    By bisection, with the model pruned and refitted at each step: the metric is taken to fall
    as the sparsity rises.

    Args:
        model: any built Keras model.
        calibration: samples, or a `Calibration` of them, as for `prune`.
        max_drop: by how much the metric may fall below the dense model's.
        metric: model -> number, higher is better, such as accuracy on labelled data. None: the
            fraction of calibration samples whose largest output is the dense model's; for
            single outputs, 1 - the squared difference relative to their variance.
        tolerance: how exactly to find the sparsity.
        highest: the largest sparsity to try, in [0, 1).
        options: of `prune`, such as `pattern`, `allocation` or `filters`.

    Raises:
        ValueError: for arguments that are wrong or do not go together.
    """
    check_sparsity("highest", highest)
    if not 0 < tolerance < 1:
        raise ValueError(
            f"`tolerance` must be a fraction in (0, 1). Received: tolerance={tolerance!r}."
        )
    if not (isinstance(max_drop, numbers.Real) and max_drop >= 0):
        raise ValueError(
            f"`max_drop` must be a number of at least 0. Received: max_drop={max_drop!r}."
        )
    _check_options(options, highest)
    check_model(model)
    calibration = Calibration.of(calibration)
    samples = calibration.read(model)
    calibration = dataclasses.replace(calibration, data=samples.inputs, progress=False)
    metric = _alone(metric or _agreement(model, samples))
    dense, weights = metric(model), Values.of(model.variables)
    points: dict[float, float] = {}

    def holds(sparsity: float) -> bool:
        try:
            prune(model, sparsity, calibration=calibration, **options)
            points[sparsity] = metric(model)
        finally:
            weights.restore()
        return dense - points[sparsity] <= max_drop

    low, high = 0.0, highest
    if holds(highest):
        low = highest
    while high - low > tolerance:
        middle = (low + high) / 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return SparsityCurve(low, max_drop, dense, tuple(sorted(points.items())))


def _check_options(options: Mapping[str, Any], highest: float) -> None:
    """Refuse those with which there is nothing to look for."""
    if options.get("copy"):
        raise ValueError(
            "`copy` has nothing to do: the model is left as it was. Received: copy=True. "
            "Leave it out."
        )
    if "sparsity" in options:
        raise ValueError(
            "`sparsity` is what is looked for. Received: "
            f"sparsity={shown(options['sparsity'])}. For the largest to try pass `highest`."
        )
    pattern, allocation = options.get("pattern"), options.get("allocation")
    if isinstance(pattern, FixedPattern):
        fix = "Prune with it and read the report: `kp.prune(model, pattern=pattern, ...)`."
        raise fixed_conflict(pattern, "highest", highest, fix)
    if isinstance(allocation, Mapping | PerWeight):
        raise ValueError(
            "`allocation` leaves no sparsity to look for where a mapping gives each weight its "
            f"own. Received: allocation={shown(allocation)}. Leave it out, or pass the name of "
            'one, such as "erk".'
        )


def sensitivity(
    model: keras.Model,
    calibration: Any = None,
    *,
    metric: Metric | None = None,
    sparsities: Sequence[float] = (0.5, 0.8, 0.9),
    filters: Any = None,
) -> Sensitivity:
    """How much a metric drops with one weight pruned at a time; the model is not changed.

    Masks alone, by magnitude: what a layer bears before anything makes up for it. The drops
    suggest `overrides` for `prune` and `GradualPruning`.

    Args:
        model: any built Keras model.
        calibration: inputs for the metric that is used if none is given.
        metric: as in `find_sparsity`.
        sparsities: to try, each in [0, 1); at least one.
        filters: layers to look at: a regex or a list of them, or a function layer -> bool.

    Raises:
        ValueError: if neither calibration nor a metric is given, or both are, or there are no
            sparsities.
    """
    if not isinstance(sparsities, Collection):
        raise ValueError(
            "`sparsities` must be a list of fractions to try. Received: "
            f"sparsities={sparsities!r}. For one pass sparsities=({sparsities!r},)."
        )
    if not len(sparsities):
        raise ValueError(
            f"`sparsities` must hold at least one to try. Received: sparsities={sparsities!r}."
        )
    for sparsity in sparsities:
        check_sparsity("sparsities", sparsity)
    if (calibration is None) == (metric is None):
        raise ValueError(
            "`sensitivity` needs either calibration samples or a metric of yours, not both. "
            f"Received: calibration of type {type(calibration).__name__}, metric={metric!r}."
        )
    plan = Rules(allocation="uniform", filters=filters).plan(model, frozen=True)
    if metric is None:
        metric = _agreement(model, Calibration.of(calibration).read(model))
    metric = _alone(metric)
    dense, weights = metric(model), Values.of(plan.variables)
    drops = {}
    for target, variable in zip(plan.targets, plan.variables, strict=True):
        alone = dataclasses.replace(plan, targets=(target,), variables=(variable,))
        found = []
        for sparsity in sparsities:
            try:
                mask_alone(alone, float(sparsity))
                found.append(dense - metric(model))
            finally:
                weights.restore()
        drops[target.path] = tuple(found)
    return Sensitivity(dense, tuple(sparsities), drops)


def _alone(metric: Metric) -> Metric:
    """The metric, from the same states each time, which it gives back; checked."""
    if not callable(metric):
        raise ValueError(
            "`metric` must be a function model -> number, higher is better. Received: "
            f"metric={metric!r}. For accuracy: lambda model: model.evaluate(x, y, verbose=0)[1]."
        )

    def measure(model: keras.Model) -> float:
        with undisturbed(model):
            return _number(metric(model))

    return measure


def _number(found: Any) -> float:
    """What a metric has given, checked."""
    try:
        number = float(keras.ops.convert_to_numpy(found) if keras.ops.is_tensor(found) else found)
    except (TypeError, ValueError):
        number = float("nan")
    if not np.isfinite(number):
        key = repr(next(iter(found), None)) if isinstance(found, Mapping) else "-1"
        several = isinstance(found, Mapping | list | tuple) or getattr(found, "ndim", 0) > 0
        fix = f" Choose one of them: `lambda model: metric(model)[{key}]`." if several else ""
        raise ValueError(f"`metric` must give a finite number. Received: {shown(found)}.{fix}")
    return number


def _agreement(model: keras.Model, samples: Samples) -> Metric:
    """How far a model agrees with what this one computes now, from 0 to 1."""
    dense = outputs_of(model, samples)

    def metric(model: keras.Model) -> float:
        pairs = zip(outputs_of(model, samples), dense, strict=True)
        return float(np.mean([_agrees(a, b) for a, b in pairs]))

    return metric


def _agrees(a: np.ndarray, b: np.ndarray) -> float:
    if b.ndim > 1 and b.shape[-1] > 1:
        return float(np.mean(a.argmax(-1) == b.argmax(-1)))
    return 1 - min(1.0, relative_error([a], [b]))
