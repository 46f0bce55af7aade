"""How far a model can be pruned: the sparsity a bound allows, and the effect of each weight."""

import dataclasses
import inspect
import numbers
import os
import statistics
import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, overload

import keras
import numpy as np

from keras_pruner.allocations import PerWeight
from keras_pruner.litert.targets import Shipped, check_target, ship
from keras_pruner.model_weights import check_model
from keras_pruner.oneshot.calibration import LEAST, Calibration, Samples
from keras_pruner.oneshot.listen import Values, undisturbed
from keras_pruner.oneshot.outputs import errors_of_samples, outputs_of
from keras_pruner.oneshot.prune import mask_alone, prune
from keras_pruner.patterns import FixedPattern, Unstructured, fixed_conflict
from keras_pruner.reporting.console import show_progress
from keras_pruner.reporting.report import Report
from keras_pruner.reporting.tables import Table
from keras_pruner.rules import Rules
from keras_pruner.validation import check_integer, check_sparsity, shown

Metric = Callable[[keras.Model], Any]

_READ = 4
"""Without a metric, up to four times as many samples are read as `Calibration` asks for: those to
calibrate on, and the others to measure on. If there are fewer, one in four is measured on."""
_RANGED = 100
"""Number of samples used to find the ranges of an integer file."""
_NEARLY = 0.05
"""Two outputs are nearly equal if they differ by less than this fraction of the height of the
largest output above the median."""
_MANY_UNCLEAR = 0.25
"""From this fraction of unclear samples on, the report advises another metric."""
_CONFIDENCE = 0.95


@dataclasses.dataclass(frozen=True)
class SparsityCurve(Report):
    """The result of `find_sparsity` for a bound on the metric; prints as a table.

    Attributes:
        sparsity: the largest sparsity tried that meets the bound; 0 if none does.
        max_drop: the bound.
        dense: the metric of the dense model.
        points: the (sparsity, metric) pairs that were tried, by rising sparsity.
        metric: the name of the metric.
        samples: the number of samples measured on, if the metric scores each one; else None.
        unclear: the fraction of samples whose two largest dense outputs are nearly equal, where
            the metric is the agreement of the largest one; None for other metrics.
        confidence: the confidence of `limits`; None if the metric is one number.
        limits: for each point, the upper confidence limit of the drop; empty if the metric is one
            number.

    Example:
        >>> curve = SparsityCurve(0.5, 0.02, 1.0, ((0.5, 0.99), (0.8, 0.9)), "agreement")
        >>> print(curve.headline())
        largest sparsity within a drop of 0.02 in agreement: 0.5
    """

    sparsity: float
    max_drop: float
    dense: float
    points: tuple[tuple[float, float], ...]
    metric: str
    samples: int | None = None
    unclear: float | None = None
    confidence: float | None = None
    limits: tuple[float, ...] = ()

    def headline(self) -> str:
        """The sparsity that was found."""
        bound = f"within a drop of {self.max_drop:g} in {self.metric}"
        return f"largest sparsity {bound}: {self.sparsity:.4g}"

    def tables(self) -> list[Table]:
        """The metric at each sparsity that was tried."""
        limits: list[tuple[str, ...]] = [(f"{limit:.4f}",) for limit in self.limits]
        limits = limits or [()] * len(self.points)
        rows = [
            (f"{s:.4f}", f"{m:.4f}", f"{self.dense - m:.4f}", *limit, "<" * (s == self.sparsity))
            for (s, m), limit in zip(self.points, limits, strict=True)
        ]
        columns = [">sparsity", ">metric", ">drop", *([">at most"] if self.limits else []), ""]
        return [Table("", columns, rows)]

    def notes(self) -> list[str]:
        """How certain the answer is, and whether the metric suits the outputs."""
        notes = [self._certainty()]
        if self.unclear is not None and self.unclear > _MANY_UNCLEAR:
            notes.append(
                f"For {self.unclear:.0%} of the samples the two largest outputs are nearly equal, "
                "as with neighbouring classes, so that their order says little. Pass a metric of "
                "your own: `metric=lambda model: ...`, higher is better."
            )
        return notes

    def _certainty(self) -> str:
        if not self.limits:
            return (
                "The metric is one number, so its uncertainty is unknown, and the drop on other "
                "samples can exceed the bound. Return an array with one score per sample, such as "
                "`lambda model: model.predict(x).argmax(-1) == y`, to account for it."
            )
        if not self.sparsity:
            return (
                f"{self.samples} samples do not confirm any of these sparsities with "
                f"{self.confidence:.0%} confidence. Pass more samples, or a larger `max_drop`."
            )
        limit = self.limits[[sparsity for sparsity, _ in self.points].index(self.sparsity)]
        return (
            f"Measured on {self.samples} samples: with {self.confidence:.0%} confidence, the drop "
            f"on other samples of the same kind is at most {limit:.2g} on average."
        )

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
class SparsityForFlash(Report):
    """The result of `find_sparsity` for a limit of flash; prints as a table.

    Attributes:
        sparsity: the least sparsity tried at which the file fits.
        flash: the limit, in bytes.
        target: the target that the file is for.
        sizes: the (sparsity, bytes of the file) pairs that were tried, by rising sparsity.
        dense: the metric of the dense model.
        pruned: the metric at the sparsity found.
        metric: the name of the metric.

    Example:
        >>> found = SparsityForFlash(0.5, 9000, "tflm", ((0.0, 12000), (0.5, 8000)), 1.0, 0.9, "R")
        >>> print(found)
        least sparsity at which the file for tflm fits into 9,000 bytes: 0.5; R 1 -> 0.9
          sparsity   bytes  fits
          ──────────────────────
            0.0000  12,000    no
            0.5000   8,000   yes
    """

    sparsity: float
    flash: int
    target: str
    sizes: tuple[tuple[float, int], ...]
    dense: float
    pruned: float
    metric: str

    def headline(self) -> str:
        """The least sparsity that fits, and the metric before and after pruning."""
        return (
            f"least sparsity at which the file for {self.target} fits into {self.flash:,} bytes: "
            f"{self.sparsity:.4g}; {self.metric} {self.dense:.4g} -> {self.pruned:.4g}"
        )

    def tables(self) -> list[Table]:
        """The size of the file at each sparsity that was tried."""
        rows = [(f"{s:.4f}", f"{n:,}", "yes" if n <= self.flash else "no") for s, n in self.sizes]
        return [Table("", [">sparsity", ">bytes", ">fits"], rows)]


@dataclasses.dataclass(frozen=True)
class Sensitivity(Report):
    """The drop of a metric with one weight pruned at a time; prints as a table.

    Attributes:
        dense: the metric of the dense model.
        sparsities: the sparsities tried.
        drops: path of a weight -> the drop at each sparsity.
        metric: the name of the metric.

    Example:
        >>> found = Sensitivity(0.9, (0.5, 0.8), {"dense/kernel": (0.01, 0.2)}, "accuracy")
        >>> print(found.headline())
        drop in accuracy from 0.9, most sensitive first
    """

    dense: float
    sparsities: tuple[float, ...]
    drops: dict[str, tuple[float, ...]]
    metric: str

    def headline(self) -> str:
        """The metric of the dense model."""
        return f"drop in {self.metric} from {self.dense:.4g}, most sensitive first"

    def tables(self) -> list[Table]:
        """The drop of each weight at each sparsity."""
        order = sorted(self.drops, key=lambda path: -self.drops[path][-1])
        rows = [(path, *(f"{drop:.4f}" for drop in self.drops[path])) for path in order]
        return [Table("", ["weight", *(f">{sparsity:g}" for sparsity in self.sparsities)], rows)]


@overload
def find_sparsity(
    model: keras.Model,
    calibration: Any,
    *,
    flash: None = None,
    max_drop: float | None = None,
    confidence: float | None = None,
    metric: Metric | None = None,
    tolerance: float = 0.01,
    highest: float = 0.98,
    **options: Any,
) -> SparsityCurve: ...


@overload
def find_sparsity(
    model: keras.Model,
    calibration: Any,
    *,
    flash: int,
    ram: int | None = None,
    target: str | None = None,
    metric: Metric | None = None,
    tolerance: float = 0.01,
    highest: float = 0.98,
    **options: Any,
) -> SparsityForFlash: ...


def find_sparsity(
    model: keras.Model,
    calibration: Any,
    *,
    max_drop: float | None = None,
    confidence: float | None = None,
    flash: int | None = None,
    ram: int | None = None,
    target: str | None = None,
    metric: Metric | None = None,
    tolerance: float = 0.01,
    highest: float = 0.98,
    **options: Any,
) -> SparsityCurve | SparsityForFlash:
    """The largest sparsity at which a metric stays within a bound; the model is not changed.

    With `flash`, it finds the least sparsity at which the exported file fits, and the metric there.

    The search is a bisection that prunes and refits the model at each step. It assumes that the
    metric and the size of the file fall as the sparsity rises.

    Args:
        model: any built Keras model.
        calibration: samples, or a `Calibration` of them, as for `prune`.
        max_drop: the largest allowed drop of the metric below the dense model's. It must be less
            than the drop with all prunable weights at zero. None: 0.01.
        confidence: the confidence, in [0.5, 1), that the drop on other samples stays within
            `max_drop`. The upper confidence limit of the drop is compared with `max_drop`; it
            comes from the difference of both models on each sample (after Agresti & Coull 1998).
            0.5 compares the measured drop, which other samples often exceed. None: 0.95, or 0.5
            for a metric that is one number, since its limit is unknown.
        flash: the largest size of the exported file in bytes, in place of `max_drop`.
        ram: with `flash` and the target "tflm", the largest arena in bytes. None: no limit.
        target: with `flash`, the target that the file is for: "tflm", an accelerator such as
            "ethos-u55-128", "litert-x86", "litert-arm" or "wasm"; None: "tflm". Up to 100 of the
            calibration samples set the ranges of an integer file.
        metric: model -> an array with one score per sample, or one number, higher is better. For
            accuracy on labelled data that are not in `calibration`:
            `lambda model: model.predict(x).argmax(-1) == y`. None: whether the largest output is
            the dense model's, or for single outputs 1 - their relative error. It is measured on
            samples that are not calibrated on: up to three times as many, at least one in four.
        tolerance: the precision of the sparsity.
        highest: the largest sparsity to try, in [0, 1).
        options: other arguments of `prune`, such as `pattern`, `allocation` or `filters`.

    Raises:
        ValueError: for arguments that are wrong or contradict each other; for a metric that is
            not higher for the model than with all weights at zero, such as a loss; for a bound
            that a model of zeros meets, or that so few samples cannot confirm; and if the file
            does not fit at any sparsity.
        RuntimeError: with `flash`, if the model cannot be exported.

    Example:
        >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4)])
        >>> x = np.random.default_rng(0).normal(size=(512, 8))
        >>> curve = find_sparsity(model, x, max_drop=0.1)
        >>> 0 <= curve.sparsity < 1
        True
    """
    check_sparsity("highest", highest)
    if not 0 < tolerance < 1:
        raise ValueError(
            f"`tolerance` must be a fraction in (0, 1). Received: tolerance={tolerance!r}."
        )
    if flash is None:
        max_drop = 0.01 if max_drop is None else max_drop
        _check_bound(max_drop, confidence, target, ram)
    else:
        _check_flash(flash, ram, target or "tflm", max_drop, confidence)
    _check_options(options, highest)
    check_model(model)
    calibration = Calibration.of(calibration)
    chosen, samples = _chosen(metric, model, calibration)
    is_shown = calibration.progress
    calibration = dataclasses.replace(calibration, data=samples.inputs, progress=False)
    weights, scores = Values.of(model.variables), chosen.scores(model)
    dense = float(scores.mean())
    spread = _checked_spread(
        chosen, dense, max_drop, _metric_of_zeros(chosen, model, weights, options)
    )
    if flash is not None:
        by_size = _FlashTrial(
            model, target or "tflm", flash, ram, calibration, options, weights, chosen
        )
        with show_progress(f"fitting {model.name} into flash", shown=is_shown) as announce:
            return by_size.find(dense, tolerance, highest, announce)
    assert max_drop is not None
    limit = _CONFIDENCE if confidence is None else float(confidence)
    if scores.ndim:
        _check_enough(len(scores), spread, float(max_drop), limit)
    elif confidence is not None and confidence > 0.5:
        raise ValueError(
            "`confidence` needs a metric of one score per sample; the given one is a number. "
            f"Received: confidence={confidence!r}. Return the scores of all samples, such as "
            "`lambda model: model.predict(x).argmax(-1) == y`, or leave `confidence` out."
        )
    by_drop = _DropTrial(
        model, float(max_drop), limit, calibration, options, weights, chosen, scores, spread
    )
    steps = 1 + int(np.ceil(np.log2(max(highest / tolerance, 1))))
    with show_progress(f"finding the sparsity of {model.name}", steps, shown=is_shown) as announce:
        return by_drop.find(tolerance, highest, announce)


def _check_bound(
    max_drop: float, confidence: float | None, target: str | None, ram: int | None
) -> None:
    """Raise for wrong arguments of a search without `flash`."""
    if ram is not None:
        raise ValueError(f"`ram` is for `flash`. Received: ram={ram!r}, flash=None.")
    if target is not None:
        raise ValueError(f"`target` is for `flash`. Received: target={target!r}, flash=None.")
    if not (isinstance(max_drop, numbers.Real) and max_drop >= 0):
        raise ValueError(
            f"`max_drop` must be a number of at least 0. Received: max_drop={max_drop!r}."
        )
    is_number = isinstance(confidence, numbers.Real)
    if confidence is not None and not (is_number and confidence >= 0.5 and confidence < 1):
        raise ValueError(
            "`confidence` must be a fraction in [0.5, 1), such as 0.95. Received: "
            f"confidence={shown(confidence)}."
        )


def _drop_limit(dense: np.ndarray, pruned: np.ndarray, spread: float, confidence: float) -> float:
    """The upper confidence limit of the mean drop, from one score per sample.

    It is the normal limit with z²/2 samples added that drop by `spread`. So the limit is above
    zero also where none of a few samples drops (Agresti & Coull 1998, "Approximate is better than
    'exact'"). For a metric that is one number, it is the drop itself.
    """
    if dense.shape != pruned.shape:
        raise ValueError(
            "`metric` must score the same samples each time. Received: scores of shape "
            f"{dense.shape} for the dense model, then {pruned.shape}."
        )
    drops = np.asarray(dense - pruned, np.float64)
    if not drops.ndim:
        return float(drops)
    z = statistics.NormalDist().inv_cdf(confidence)
    more = z**2 / 2
    count = len(drops) + more
    mean = (drops.sum() + more * spread) / count
    square = (np.square(drops).sum() + more * spread**2) / count
    return float(mean + z * np.sqrt(max(square - mean**2, 0.0) / count))


def _check_enough(count: int, spread: float, max_drop: float, confidence: float) -> None:
    """Raise if the samples could not confirm the bound even if none of them dropped."""

    def least(count: int) -> float:
        return _drop_limit(np.zeros(count), np.zeros(count), spread, confidence)

    if least(count) <= max_drop:
        return
    enough = int(np.ceil(count * least(count) / max_drop)) if max_drop else 0
    more = f"enough to measure on {enough} of them, " if enough else ""
    raise ValueError(
        f"`max_drop` is too small for the {count} samples that are measured on (without a metric, "
        "at least one in four of `calibration`): even if none of them drops, "
        f"with {confidence:.0%} confidence the drop is only known to be below {least(count):.2g}. "
        f"Received: max_drop={max_drop!r}. Pass {more}a larger `max_drop`, or a `confidence` of "
        "0.5 to go by the measured drop."
    )


def _check_flash(
    flash: int, ram: int | None, target: str, max_drop: float | None, confidence: float | None
) -> None:
    check_integer("flash", flash, least=1)
    check_target(target, ram=ram)
    for name, value in (("max_drop", max_drop), ("confidence", confidence)):
        if value is not None:
            raise ValueError(
                f"`flash` asks for the least sparsity that fits, `{name}` for the largest that "
                f"keeps the metric: pass one of them. Received: flash={flash!r}, {name}={value!r}."
            )


@dataclasses.dataclass(frozen=True, eq=False)
class _FlashTrial:
    """Exports a model at one sparsity after another, to find the least at which the file fits."""

    model: keras.Model
    target: str
    flash: int
    ram: int | None
    calibration: Calibration
    options: Mapping[str, Any]
    weights: Values
    metric: "_Metric"

    def find(
        self, dense: float, tolerance: float, highest: float, announce: Callable[[str], None]
    ) -> SparsityForFlash:
        """The least sparsity that fits, by bisection."""
        found: dict[float, tuple[Shipped, float | None]] = {}

        def fits(sparsity: float) -> bool:
            announce(f"sparsity {sparsity:.4g}")
            found[sparsity] = self._try(sparsity, dense)
            return found[sparsity][0].flash <= self.flash

        low, high = 0.0, highest
        if fits(0.0):
            high = 0.0
        elif not fits(highest):
            shipped = found[highest][0]
            ram = more = ""
            if self.ram is not None:
                ram, more = f", ram={self.ram:,}", "Allow more `ram`, so that more is encoded. "
            raise ValueError(
                f"The file for {self.target} does not fit at any sparsity up to {highest:g}: it "
                f"takes {shipped.flash:,} bytes there. Received: flash={self.flash:,}{ram}. Its "
                f"largest weight is {shipped.largest}. {more}Remove channels with kp.shrink "
                "first, or make that layer smaller."
            )
        while high - low > tolerance:
            middle = (low + high) / 2
            low, high = (low, middle) if fits(middle) else (middle, high)
        sizes = tuple((s, shipped.flash) for s, (shipped, _) in sorted(found.items()))
        pruned = found[high][1]
        assert pruned is not None
        return SparsityForFlash(
            high, self.flash, self.target, sizes, dense, pruned, self.metric.name
        )

    def _try(self, sparsity: float, dense: float) -> tuple[Shipped, float | None]:
        """The file at a sparsity, and the metric of the pruned Keras model if the file fits."""
        samples = keras.tree.map_structure(
            lambda leaf: np.asarray(leaf)[:_RANGED], self.calibration.data
        )
        try:
            if sparsity:
                prune(self.model, sparsity, calibration=self.calibration, **self.options)
            with tempfile.TemporaryDirectory() as scratch:
                path = Path(scratch, "model.tflite")
                shipped = ship(self.model, path, self.target, samples, ram=self.ram, progress=False)
            if shipped.flash > self.flash:
                return shipped, None
            return shipped, self.metric.measure(self.model) if sparsity else dense
        finally:
            self.weights.restore()


@dataclasses.dataclass(frozen=True, eq=False)
class _DropTrial:
    """Prunes a model at one sparsity after another, to find the largest that meets the bound.

    Attributes:
        model: the dense model; it is restored after each trial.
        max_drop: the bound.
        confidence: the confidence of the limit that is compared with the bound.
        calibration: the samples to calibrate on.
        options: other arguments of `prune`.
        weights: the dense weights.
        metric: the metric.
        scores: its scores for the dense model.
        spread: the drop of the metric with all prunable weights at zero.
    """

    model: keras.Model
    max_drop: float
    confidence: float
    calibration: Calibration
    options: Mapping[str, Any]
    weights: Values
    metric: "_Metric"
    scores: np.ndarray
    spread: float

    def find(
        self, tolerance: float, highest: float, announce: Callable[[str], None]
    ) -> SparsityCurve:
        """The largest sparsity that meets the bound, by bisection."""
        found: dict[float, tuple[float, float]] = {}

        def holds(sparsity: float) -> bool:
            announce(f"sparsity {sparsity:.4g}")
            found[sparsity] = self._try(sparsity)
            return found[sparsity][1] <= self.max_drop

        low, high = 0.0, highest
        if holds(highest):
            low = highest
        while high - low > tolerance:
            middle = (low + high) / 2
            low, high = (middle, high) if holds(middle) else (low, middle)
        return self._curve(low, found)

    def _try(self, sparsity: float) -> tuple[float, float]:
        """The metric of the model pruned to a sparsity, and the upper limit of its drop."""
        try:
            prune(self.model, sparsity, calibration=self.calibration, **self.options)
            pruned = self.metric.scores(self.model)
        finally:
            self.weights.restore()
        limit = _drop_limit(self.scores, pruned, self.spread, self.confidence)
        return float(pruned.mean()), limit

    def _curve(self, best: float, found: Mapping[float, tuple[float, float]]) -> SparsityCurve:
        tried = sorted(found.items())
        points = tuple((sparsity, metric) for sparsity, (metric, _) in tried)
        curve = SparsityCurve(
            best,
            self.max_drop,
            float(self.scores.mean()),
            points,
            self.metric.name,
            unclear=self.metric.unclear,
        )
        if not self.scores.ndim:
            return curve
        limits = tuple(limit for _, (_, limit) in tried)
        return dataclasses.replace(
            curve, samples=len(self.scores), confidence=self.confidence, limits=limits
        )


def _metric_of_zeros(
    chosen: "_Metric", model: keras.Model, weights: Values, options: Mapping[str, Any]
) -> float | None:
    """The metric with all prunable weights at zero; None if it is not a number there."""
    rules = {name: options.get(name) for name in ("filters", "overrides")}
    plan = Rules(options.get("pattern", Unstructured()), **rules).plan(model, frozen=True)
    try:
        for variable in plan.variables:
            variable.assign(np.zeros(variable.shape))
        return chosen.measure(model)
    except ValueError:  # a correlation, for example, is not defined for constant outputs
        return None
    finally:
        weights.restore()


def _checked_spread(
    chosen: "_Metric", dense: float, max_drop: float | None, worst: float | None
) -> float:
    """The drop with all prunable weights at zero; raises if it is 0, or within the bound.

    Args:
        chosen: the metric.
        dense: its value for the dense model.
        max_drop: the bound; None with `flash`.
        worst: its value with all prunable weights at zero; None if it is not a number there. The
            drop is then taken to be that to zero.
    """
    if worst is None:
        return abs(dense)
    if worst >= dense:
        raise ValueError(
            f"`metric` must be higher for a better model. Received: {chosen.name}, which is "
            f"{dense:.4g} for this model and {worst:.4g} with all its prunable weights at zero. "
            "If it is a loss, negate it: `metric=lambda model: -loss(model)`."
        )
    if max_drop is not None and max_drop >= dense - worst:
        raise ValueError(
            f"`max_drop` must be less than {dense - worst:.4g}, by which {chosen.name} falls if "
            f"all prunable weights are zero (from {dense:.4g} to {worst:.4g}). "
            f"Received: max_drop={max_drop!r}. For one percentage point of a metric from 0 to 1 "
            "pass max_drop=0.01."
        )
    return dense - worst


def _check_options(options: Mapping[str, Any], highest: float) -> None:
    """Raise for options that `prune` does not take, or that leave nothing to find."""
    unknown = options.keys() - inspect.signature(prune).parameters.keys()
    if unknown:
        raise TypeError(
            "`find_sparsity` passes other arguments to `prune`, and neither has these: "
            f"{', '.join(sorted(unknown))}."
        )
    if options.get("copy"):
        raise ValueError(
            "`copy` has nothing to do: the model is left as it was. Received: copy=True. "
            "Leave it out."
        )
    if "sparsity" in options:
        raise ValueError(
            "`sparsity` is what `find_sparsity` finds. Received: "
            f"sparsity={shown(options['sparsity'])}. For the largest to try pass `highest`."
        )
    pattern, allocation = options.get("pattern"), options.get("allocation")
    if isinstance(pattern, FixedPattern):
        fix = "Prune with it and read the report: `kp.prune(model, pattern=pattern, ...)`."
        raise fixed_conflict(pattern, "highest", highest, fix)
    if isinstance(allocation, Mapping | PerWeight):
        raise ValueError(
            "`allocation` leaves no sparsity to find if a mapping gives each weight its own. "
            f"Received: allocation={shown(allocation)}. Leave it out, or pass the name of "
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

    The masks are those by magnitude, without a refit. The drops suggest `overrides` for `prune` and
    `GradualPruning`.

    Args:
        model: any built Keras model.
        calibration: inputs, or a `Calibration` of them, to measure the metric on if none is given.
        metric: as in `find_sparsity`.
        sparsities: the sparsities to try, each in [0, 1); at least one.
        filters: layers to measure: a regex or a list of them, or a function layer -> bool.

    Raises:
        ValueError: if neither calibration nor a metric is given, or both are, or there are no
            sparsities.

    Example:
        >>> parts = [keras.layers.Dense(8, name="one"), keras.layers.Dense(4, name="two")]
        >>> model = keras.Sequential([keras.Input((8,)), *parts])
        >>> x = np.random.default_rng(0).normal(size=(64, 8))
        >>> list(sensitivity(model, x, sparsities=(0.5,)).drops)
        ['one/kernel', 'two/kernel']
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
        chosen = _agreement(model, Calibration.of(calibration).read(model))
    else:
        chosen = _given(metric)
    dense, weights = chosen.measure(model), Values.of(plan.variables)
    drops = {}
    for target, variable in zip(plan.targets, plan.variables, strict=True):
        alone = dataclasses.replace(plan, targets=(target,), variables=(variable,))
        found = []
        for sparsity in sparsities:
            try:
                mask_alone(alone, float(sparsity))
                found.append(dense - chosen.measure(model))
            finally:
                weights.restore()
        drops[target.path] = tuple(found)
    return Sensitivity(dense, tuple(sparsities), drops, chosen.name)


@dataclasses.dataclass(frozen=True, eq=False)
class _Metric:
    """A metric, with its name.

    Attributes:
        function: model -> number, or one score per sample.
        name: as reports show it.
        unclear: the fraction of samples whose largest dense output is not clear.
    """

    function: Metric
    name: str
    unclear: float | None = None

    def scores(self, model: keras.Model) -> np.ndarray:
        """One score per sample, or a single number; the model's states are restored after it."""
        with undisturbed(model):
            return _scores(self.function(model))

    def measure(self, model: keras.Model) -> float:
        """The mean of the scores."""
        return float(self.scores(model).mean())


def _chosen(
    metric: Metric | None, model: keras.Model, calibration: Calibration
) -> tuple[_Metric, Samples]:
    """The metric, and the samples to calibrate on."""
    if metric is not None:
        return _given(metric), calibration.read(model)
    asked = calibration.samples
    samples = dataclasses.replace(calibration, samples=_READ * asked).read(model)
    count = min(asked, len(samples) - len(samples) // _READ)
    if count < LEAST:
        raise ValueError(
            f"`calibration` must hold at least {2 * LEAST} samples without a metric, since one "
            f"in four is kept to measure on. Received: {len(samples)}. Pass more, or a metric."
        )
    held = np.ones(len(samples), bool)
    held[np.linspace(0, len(samples) - 1, count).astype(int)] = False
    fit, measured = samples.split(held)
    return _agreement(model, measured), fit


def _given(metric: Metric) -> _Metric:
    """The user's metric; raises if it is not a function."""
    if not callable(metric):
        raise ValueError(
            "`metric` must be a function model -> number, higher is better. Received: "
            f"metric={metric!r}. For accuracy: lambda model: model.evaluate(x, y, verbose=0)[1]."
        )
    name = getattr(metric, "__name__", "")
    return _Metric(metric, name if name.isidentifier() else "the given metric")


def _scores(found: Any) -> np.ndarray:
    """The result of a metric: a number, or an array of one score per sample; else raises."""
    try:
        number = keras.ops.convert_to_numpy(found) if keras.ops.is_tensor(found) else found
        is_array = isinstance(number, np.ndarray) and number.ndim and len(number) >= LEAST
        number = np.asarray(number if is_array else float(number), np.float64)
    except (TypeError, ValueError):
        number = np.asarray(np.nan)
    if not np.all(np.isfinite(number)):
        key = repr(next(iter(found), None)) if isinstance(found, Mapping) else "-1"
        few = getattr(found, "ndim", 0) > 0 and len(found) < LEAST
        several = few or isinstance(found, Mapping | list | tuple)
        fix = f" Choose one of them: `lambda model: metric(model)[{key}]`." if several else ""
        raise ValueError(
            "`metric` must give a finite number, or an array of them, one per sample. "
            f"Received: {shown(found)}.{fix}"
        )
    return number.reshape(len(number), -1).mean(axis=1) if number.ndim else number


def _agreement(model: keras.Model, samples: Samples) -> _Metric:
    """The agreement of a model's outputs with the present ones, from 0 to 1 for each sample."""
    dense = outputs_of(model, samples)

    def agreement(model: keras.Model) -> np.ndarray:
        pairs = zip(outputs_of(model, samples), dense, strict=True)
        return np.mean([_agrees(a, b) for a, b in pairs], axis=0)

    classes = [output for output in dense if _has_classes(output)]
    if len(classes) < len(dense):
        return _Metric(agreement, "agreement of the outputs with the dense model's")
    unclear = float(np.mean([_unclear(output) for output in classes]))
    name = "agreement of the largest output with the dense model's"
    return _Metric(agreement, name, unclear)


def _has_classes(output: np.ndarray) -> bool:
    return output.ndim > 1 and output.shape[-1] > 1


def _agrees(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The agreement of each sample."""
    if _has_classes(b):
        same = a.argmax(-1) == b.argmax(-1)
        return same.reshape(len(same), -1).mean(axis=1)
    return 1 - np.minimum(1.0, errors_of_samples(a, b))


def _unclear(output: np.ndarray) -> float:
    """The fraction of samples whose two largest outputs are nearly equal."""
    second, first = np.moveaxis(np.partition(output, (-2, -1), axis=-1)[..., -2:], -1, 0)
    height = first - np.median(output, axis=-1)
    return float(np.mean(first - second < _NEARLY * height))
