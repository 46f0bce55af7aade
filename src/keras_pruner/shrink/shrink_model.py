"""`kp.shrink`: a smaller model without the channels that are dead, or that matter least."""

import dataclasses
import math
import numbers
import re
import time
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np

from keras_pruner import backends
from keras_pruner.channels.classes import Channels, Group
from keras_pruner.channels.layer_rules import channels_of
from keras_pruner.channels.probing import draw
from keras_pruner.litert.interpreter import largest_difference
from keras_pruner.model_graph import ModelGraph, functional_form
from keras_pruner.model_weights import check_model
from keras_pruner.oneshot.calibration import Calibration
from keras_pruner.oneshot.listen import run
from keras_pruner.reporting.console import show_progress
from keras_pruner.shrink.budget import Budget, allocate
from keras_pruner.shrink.constants import Cut, cut_of_dead
from keras_pruner.shrink.rebuild import as_sequential, rebuild
from keras_pruner.shrink.refit import DenseCopy
from keras_pruner.shrink.report import ChannelGroup, ShrinkReport
from keras_pruner.shrink.scores import Ranking, rankings
from keras_pruner.shrink.speed import RUNTIME, Stopwatch
from keras_pruner.training.optimizer import find
from keras_pruner.validation import check_integer, check_regex

_Overrides = Mapping[str, None] | None
_TRIES = 8
_NEAR = 1.03  # the search stops at a speed-up of at most this times the requested one
_SIDE = 32  # length of random inputs along an axis of unknown length


def shrink(
    model: keras.Model,
    *,
    macs: float | None = None,
    weights: float | None = None,
    speedup: float | None = None,
    runtime: str = RUNTIME,
    calibration: Any = None,
    multiple: int = 8,
    overrides: Mapping[str, None] | None = None,
) -> ShrinkReport:
    """Remove channels, attention heads and recurrent units from a model.

    The result is an ordinary, smaller Keras model: faster on every runtime, where zeros are
    faster on few.

    Without a target, only dead channels are removed, those that change no output: channels that
    are constant for every input (the constants are folded into biases or batch norms), and
    channels that are only multiplied by zeros. `GradualPruning` with `Channel` makes such channels.

    With a target, the channels with the least error for each multiplication saved are removed.
    The error is that of the layers that read a channel, after a least-squares refit (structured
    Optimal Brain Surgeon), relative to the variance of their outputs. Then these layers are
    refitted, one after another, to the outputs of the given model, and batch norms are
    re-estimated (ThiNet, Luo et al. 2017; He et al. 2017, arXiv:1707.06168; GRAIL, Tang et al.
    2026, arXiv:2602.23795). No labels are needed, and no training.

    Args:
        model: a functional, Sequential or traceable subclassed model; unchanged.
        macs: the fraction of the multiply-accumulates to keep, in (0, 1).
        weights: another target: the fraction of the weights to keep, in (0, 1).
        speedup: another target: how many times as fast the model must be, above 1. It is found
            by bisection over the multiply-accumulates, and every candidate is measured. Needs the
            extra "litert".
        runtime: where `speedup` is measured: "litert-x86", this machine, one sample, one thread.
        calibration: samples without labels, as for `prune`; needed for a target. With
            `kp.oneshot.Calibration(data, distillation_epochs=10)` the smaller model is then
            trained to reproduce the outputs of the given one, still without labels. This helps
            for strong reductions, such as macs=0.25.
        multiple: with a target, every number of channels that changes becomes a multiple of this,
            since runtimes are slower at other numbers. 16 is better on ONNX Runtime with AVX-512;
            1 allows small models to get smaller.
        overrides: regex searched in the paths of weights -> None. The channels of each weight
            that matches are left alone.

    Returns:
        A report; its `model` is the smaller one, with the same layer names, not compiled.

    Raises:
        ValueError: if the model is not a graph of layers, or has layers that cannot be cut; if
            a target is given without samples, or cannot be reached.
        RuntimeError: if the smaller model's outputs are wrong.

    Example:
        >>> import keras, keras_pruner as kp
        >>> inputs = keras.Input((8,))
        >>> hidden = keras.layers.Dense(32, activation="relu", name="hidden")
        >>> model = keras.Model(inputs, keras.layers.Dense(2, name="head")(hidden(inputs)))
        >>> x = np.random.default_rng(0).normal(size=(256, 8))
        >>> report = kp.shrink(model, macs=0.5, calibration=x)
        >>> report.model.get_layer("hidden").units
        16

        Without a target, dead channels are removed:

        >>> kernel, bias = hidden.get_weights()
        >>> kernel[:, :20] = 0
        >>> hidden.set_weights([kernel, bias])
        >>> kp.shrink(model).model.get_layer("hidden").units
        12
    """
    began = time.perf_counter()
    check_shrinkable(model)
    check_integer("multiple", multiple, least=1)
    target = _target({"macs": macs, "weights": weights, "speedup": speedup}, calibration)
    if runtime != RUNTIME:
        raise ValueError(f'`runtime` must be "{RUNTIME}". Received: runtime={runtime!r}.')
    if target is None:
        return _remove_dead(model, overrides, began)
    return _reach_size(model, *target, Calibration.of(calibration), multiple, overrides, began)


def _remove_dead(model: keras.Model, overrides: _Overrides, began: float) -> ShrinkReport:
    form = functional_form(model)
    channels = _left_alone(channels_of(ModelGraph(form)), overrides)
    cut = cut_of_dead(channels)
    if cut.kept.all():
        warnings.warn(_nothing_removed(model, channels), stacklevel=3)
    smaller = rebuild(form, channels, cut)
    difference = _difference(form, smaller)
    _check_same(model, difference)
    return _report(model, smaller, channels, cut.kept, difference, None, began)


def _reach_size(
    model: keras.Model,
    name: str,
    fraction: float,
    options: Calibration,
    multiple: int,
    overrides: _Overrides,
    began: float,
) -> ShrinkReport:
    dense = DenseCopy.of(model, options)
    channels = _left_alone(dense.channels, overrides)
    with show_progress(f"shrinking {model.name}", dense.steps, shown=options.progress) as announce:
        ranked = rankings(channels, dense.recorder, announce)
        reached = None
        if name == "speedup":
            kept, reached = _reach_speedup(dense, channels, ranked, fraction, multiple)
        else:
            kept = allocate(channels, ranked, _budget(channels, name, fraction), multiple)
        dense.refit(kept, announce)
        smaller = rebuild(dense.model, channels, Cut(kept))
        difference = _difference(dense.model, smaller)
        _check_same(model, difference)
        error = dense.teach(smaller, announce)
    report = _report(model, smaller, channels, kept, difference, error, began)
    if reached is not None:
        return dataclasses.replace(report, speedup=reached)
    return _with_overshoot(report, name, fraction)


def _with_overshoot(report: ShrinkReport, name: str, fraction: float) -> ShrinkReport:
    """Note in the report if the model is more than 5% smaller than requested."""
    before, after = report.macs if name == "macs" else report.weights
    if after >= 0.95 * fraction * before:
        return report
    text = (
        f"{name}={fraction:g} was requested, and {after / before:.3g} is reached: in a small "
        "model, multiples of channels are large steps. multiple=1 comes closer."
    )
    return dataclasses.replace(report, overshoot=text)


def _reach_speedup(
    dense: DenseCopy,
    channels: Channels,
    ranked: dict[Group, Ranking],
    speedup: float,
    multiple: int,
) -> tuple[np.ndarray, float]:
    """The largest model that is fast enough, found by bisection over its multiplications.

    Each guess assumes that time is proportional to multiplications. If a guess lies outside the
    interval that is left, its geometric middle is tried. Latency depends on the sizes alone, so
    the models that are measured are not refitted.

    Returns:
        The channels to keep, and the speed-up that was measured with them.
    """
    low, high = 0.02, 1.0
    guess: float | None = 1 / speedup
    found: tuple[np.ndarray, float] | None = None
    fastest = 1.0
    with Stopwatch(dense.model, progress=dense.options.progress) as stopwatch:
        for _ in range(_TRIES):
            fraction = guess if guess and low < guess < high else math.sqrt(low * high)
            try:
                kept = allocate(channels, ranked, _budget(channels, "macs", fraction), multiple)
            except ValueError:
                low, guess = fraction, None
                continue
            reached = stopwatch.speedup(rebuild(dense.model, channels, Cut(kept)))
            fastest = max(fastest, reached)
            if reached >= speedup:
                found, low = (kept, reached), fraction
                if reached <= _NEAR * speedup:
                    break
            else:
                high = fraction
            guess = fraction * reached / speedup
    if found is None:
        frozen = dict.fromkeys(g.reason or g.mixes for g in channels.groups if g.reason or g.mixes)
        raise ValueError(
            f"`speedup` could not be reached: the fastest was {fastest:.2f}. Received: "
            f"speedup={speedup}. Ask for less, or change the layers whose channels cannot be "
            f"removed: {'; '.join(frozen)}."
        )
    return found


def _budget(channels: Channels, name: str, fraction: float) -> Budget:
    if name == "macs":
        return Budget(name, fraction, channels.work)
    return Budget(name, fraction, tuple(channels.entries()))


def _target(targets: dict[str, float | None], calibration: Any) -> tuple[str, float] | None:
    """The name and value of the argument that sets a target; None if there is none."""
    given = {name: value for name, value in targets.items() if value is not None}
    if len(given) > 1:
        raise ValueError(
            f"{' and '.join(f'`{name}`' for name in given)} are two targets. Received: {given}. "
            "Pass one of them."
        )
    if not given:
        if calibration is not None:
            raise ValueError(
                "`calibration` has no use without a target: only channels that change no output "
                "are removed then. Pass macs=0.5 too, or leave it out."
            )
        return None
    ((name, value),) = given.items()
    is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if name == "speedup" and (not is_number or not value > 1):
        raise ValueError(
            f"`speedup` must be a number above 1. Received: speedup={value!r}. For half the time "
            "pass speedup=2."
        )
    if name != "speedup" and (not is_number or not 0 < value < 1):
        raise ValueError(
            f"`{name}` must be the fraction to keep, in (0, 1). Received: {name}={value!r}. For "
            f"half of them pass {name}=0.5."
        )
    if calibration is None:
        raise ValueError(
            f"`calibration` is needed for a target: without a refit most of the accuracy would "
            f"be lost. Received: {name}={value}, calibration=None. Pass a few hundred of the "
            "model's inputs, or train with `GradualPruning(0.5, pattern=kp.Channel())` and call "
            "`kp.shrink(model)` after it."
        )
    return name, float(value)


def _left_alone(channels: Channels, overrides: _Overrides) -> Channels:
    """Exclude the groups with a weight whose path matches an override."""
    groups = list(channels.groups)
    for regex, value in (overrides or {}).items():
        check_regex("overrides", regex)
        if value is not None:
            raise ValueError(
                "`overrides` must map regexes to None, to leave channels alone. Received: "
                f"{{{regex!r}: {value!r}}}. To prune single weights use `kp.prune`."
            )
        named = [any(re.search(regex, a.variable.path) for a in g.axes) for g in groups]
        if not any(named):
            paths = list(dict.fromkeys(axis.variable.path for axis in channels.axes))
            raise ValueError(f"`overrides` matches no weight with {regex!r}. Weights: {paths}.")
        groups = [
            dataclasses.replace(g, reason=g.reason or "left alone by an override") if hit else g
            for g, hit in zip(groups, named, strict=True)
        ]
    return dataclasses.replace(channels, groups=tuple(groups))


def check_shrinkable(model: Any) -> None:
    """Raise for a model with layers that cannot be cut, or in an unfinished pruning schedule."""
    check_model(model)
    for layer in model._flatten_layers():
        if getattr(layer, "quantization_mode", None) is not None:
            raise ValueError(
                f"`model` must hold floating-point weights. Received: {layer.name!r}, which is "
                f"quantized to {layer.quantization_mode}. Shrink first, then quantize."
            )
        if getattr(layer, "lora_enabled", False):
            raise ValueError(
                f"`model` must not have LoRA enabled. Received: {layer.name!r}, whose kernel is a "
                "sum. Merge it first: `kp.quantization.merge_lora(model)`."
            )
        if isinstance(layer, keras.layers.RNN) and layer.stateful:
            raise ValueError(
                f"`model` must have no stateful layers. Received: {layer.name!r}. Build the model "
                "with stateful=False, copy the weights with `set_weights`, and shrink that."
            )
        if getattr(layer, "data_format", None) == "channels_first":
            raise ValueError(
                "`model` must have its channels last. Received: the layer "
                f'{layer.name!r} with data_format="channels_first". Build it with '
                '"channels_last" and copy the weights with `set_weights`: the shapes are the same.'
            )
    present = find(model)
    if present is not None and present.state.has_begun and not present.state.has_ended:
        raise ValueError(
            f"{model.name!r} is being pruned by an unfinished training, whose masks would not fit "
            "smaller weights. Train to the end of the schedule, or call "
            "`kp.Pruner(model).release()` first."
        )


def _nothing_removed(model: keras.Model, channels: Channels) -> str:
    frozen = [group for group in channels.groups if group.reason or group.mixes]
    reasons = dict.fromkeys(group.reason or group.mixes for group in frozen)
    return (
        f"Nothing could be removed from {model.name!r} without changing its outputs: no channel "
        "is dead. Train with `GradualPruning(0.5, pattern=kp.Channel())`, or pass a target with "
        "calibration samples: `kp.shrink(model, macs=0.5, calibration=x)`. "
        f"Left alone: {len(frozen)} of {len(channels.groups)} groups ({'; '.join(reasons)})."
    )


def _difference(form: keras.Model, smaller: keras.Model) -> float:
    """The largest difference of the outputs on random inputs, relative to the largest output."""
    random = np.random.default_rng(0)
    limits = [layer.input_dim for layer in form._flatten_layers()
              if isinstance(layer, keras.layers.Embedding)]  # fmt: skip
    arrays = [_random(tensor, min(limits, default=2), random) for tensor in form.inputs]
    inputs = keras.tree.pack_sequence_as(form._inputs_struct, arrays)
    both = [keras.tree.flatten(run(each, inputs)) for each in (form, smaller)]
    pairs = zip(*([keras.ops.convert_to_numpy(o) for o in some] for some in both), strict=True)
    return max(largest_difference(one, other) for one, other in pairs)


def _random(tensor: Any, limit: int, random: np.random.Generator) -> np.ndarray:
    shape = (4, *(size or _SIDE for size in tensor.shape[1:]))
    dtype = keras.backend.standardize_dtype(tensor.dtype)
    if "int" in dtype:
        return random.integers(0, limit, shape).astype(dtype)
    return draw(shape, dtype, random)


def _check_same(model: keras.Model, difference: float) -> None:
    is_half = any("16" in layer.compute_dtype for layer in model._flatten_layers())
    if not difference <= (2e-2 if is_half else 1e-5):
        raise RuntimeError(
            f"The outputs of the smaller model are wrong: they differ by {difference:.1e} of the "
            f"largest output. {model.name!r} is unchanged. Leave the layers that may cause it "
            "alone, overrides={name: None}, and please report them."
        )


def _report(
    model: keras.Model,
    smaller: keras.Model,
    channels: Channels,
    kept: np.ndarray,
    difference: float,
    error: float | None,
    began: float,
) -> ShrinkReport:
    groups = tuple(
        ChannelGroup(
            group.name,
            len(group.classes),
            int(np.count_nonzero(kept[group.classes])),
            group.reason or group.mixes,
        )
        for group in channels.groups
    )
    counts = (_total(model, _entries), _total(smaller, _entries))
    sizes = (_total(model, _bytes), _total(smaller, _bytes))
    if isinstance(model, keras.Sequential):
        smaller = as_sequential(smaller, model)
    macs = (channels.macs(), channels.macs(kept))
    return ShrinkReport(
        smaller, groups, macs, counts, sizes, difference, error, time.perf_counter() - began
    )


def _total(model: keras.Model, size: Callable[[keras.Variable], int]) -> int:
    return sum(map(size, model.weights))


def _entries(variable: keras.Variable) -> int:
    return int(np.prod(variable.shape))


def _bytes(variable: keras.Variable) -> int:
    return int(backends.current().to_numpy(variable).nbytes)
