"""`kp.shrink`: a smaller model without the channels that are dead, or that matter least."""

import time
import warnings
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from keras_pruner import backends
from keras_pruner.litert.interpreter import largest_difference
from keras_pruner.model_graph import ModelGraph, functional_form
from keras_pruner.model_weights import check_model
from keras_pruner.oneshot.listen import run
from keras_pruner.shrink.channels import Channels
from keras_pruner.shrink.constants import dead
from keras_pruner.shrink.probing import draw
from keras_pruner.shrink.rebuild import as_sequential, rebuild
from keras_pruner.shrink.report import ChannelGroup, ShrinkReport
from keras_pruner.shrink.rules import channels_of
from keras_pruner.training.optimizer import find

_SIDE = 32  # length of an axis of unknown length in random inputs


def shrink(model: keras.Model) -> ShrinkReport:
    """Remove channels, heads and units from a model.

    The result is an ordinary, smaller Keras model: faster on every runtime, where zeros are
    faster on few.

    Without a target, what changes no output is removed, exactly: channels that are the same
    number for every input (their constants are folded into biases or batch norms), and channels
    that are only ever multiplied by zeros. That is what `GradualPruning` with `Channel` leaves.

    Args:
        model: a functional, Sequential or traceable subclassed model; unchanged.

    Returns:
        A report; its `model` is the smaller one, with the same layer names, not compiled.

    Raises:
        ValueError: if the model is no graph of layers, or one that cannot be cut.
        RuntimeError: if the smaller model computes something else.

    Example:
        >>> import keras, keras_pruner as kp
        >>> inputs = keras.Input((8,))
        >>> hidden = keras.layers.Dense(6, activation="relu", name="hidden")
        >>> model = keras.Model(inputs, keras.layers.Dense(2, name="head")(hidden(inputs)))
        >>> kernel, bias = hidden.get_weights()
        >>> kernel[:, :4] = 0
        >>> hidden.set_weights([kernel, bias])
        >>> report = kp.shrink(model)
        >>> report.model.get_layer("hidden").units
        2
    """
    began = time.perf_counter()
    _check(model)
    form = functional_form(model)
    channels = channels_of(ModelGraph(form))
    cut = dead(channels)
    if cut.kept.all():
        warnings.warn(_nothing(model, channels), stacklevel=2)
    smaller = rebuild(form, channels, cut)
    if isinstance(model, keras.Sequential):
        smaller = as_sequential(smaller, model)
    difference = _difference(form, smaller)
    _check_same(model, difference)
    return _report(model, smaller, channels, cut.kept, difference, None, began)


def _check(model: Any) -> None:
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
                "with stateful=False and `set_weights` back and forth."
            )
        if getattr(layer, "data_format", None) == "channels_first":
            raise ValueError(
                "`model` must have its channels last. Received: the layer "
                f'{layer.name!r} with data_format="channels_first". Build it with '
                '"channels_last" and `set_weights`: kernels have the same shape.'
            )
    wrapped = find(model)
    if wrapped is not None and wrapped.has_begun and not wrapped.finished:
        raise ValueError(
            f"{model.name!r} is being pruned by an unfinished training, whose masks fit its "
            "weights only as they are. Train to the end of the schedule, or call "
            "`kp.Pruner(model).release()` first."
        )


def _nothing(model: keras.Model, channels: Channels) -> str:
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
            f"The smaller model computes something else: outputs differ by {difference:.1e} of "
            f"the largest. {model.name!r} is unchanged; please report its layers."
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
