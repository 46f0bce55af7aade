"""What an operation without weights does to channels, found out by running it.

No list of operations is kept. An operation works on each channel by itself if removing channels
before it is the same as removing them after it: f(x[..., kept]) == f(x)[..., kept].
"""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import keras
import numpy as np

from keras_pruner.model_graph import Call, Tensor

_FEW = 6  # channels in trials of Keras' layers, which do the same to any number of channels
_SIDE = 9  # height and width of the images in the first trial
_SETS = 3  # random sets of channels to remove
_BATCH = 64  # samples; with fewer a channel may look constant by chance
_NUMBERS = 2**24  # the most numbers in one input
_UNKNOWN = 8  # the length in trials of an axis of unknown length

Inputs = dict[Tensor, np.ndarray]


def is_elementwise(activation: Callable[[Any], Any] | None, channels: int) -> bool:
    """Whether an activation computes each channel from that channel alone."""
    if activation is None or activation is keras.activations.linear:
        return True
    values = np.random.default_rng(0).normal(size=(16, channels)).astype("float32") * 3
    kept = np.arange(channels) % 3 != 1 if channels > 1 else np.ones(1, bool)
    try:
        whole, part = (_numpy(activation(keras.ops.array(v))) for v in (values, values[:, kept]))
    except Exception:  # the activation is the user's: it may raise anything
        return False
    return whole.shape == values.shape and _same(whole[:, kept], part)


def keeps_zero(activation: Callable[[Any], Any] | None) -> bool:
    """Whether an activation gives zero for zero."""
    if activation is None or activation is keras.activations.linear:
        return True
    return not _numpy(activation(keras.ops.zeros((1, 1)))).any()


def is_channelwise(call: Call, channels: int) -> bool:
    """Whether an operation computes each of its channels from that channel alone."""
    return _commutes(call, channels, lambda kept: (kept, kept))


def obstacle(call: Call) -> str:
    """The reason why no trial explains an operation: it raises, or it mixes channels."""
    *_, inputs = _inputs(call, np.random.default_rng(0), {}, heavy=False)
    try:
        _run(call, inputs)
    except Exception as error:
        first = next(filter(None, map(str.strip, str(error).splitlines()[1:])), str(error))
        return f"raises {type(error).__name__} on random numbers: {first[:200]}"
    return "reads or writes channels by position, or mixes them"


def folds_halves(call: Call, channels: int) -> bool:
    """Whether output channel i is computed from input channels i and i + half, as in GLU."""
    return _commutes(call, channels, lambda kept: (np.tile(kept[: len(kept) // 2], 2), None))


def _commutes(call: Call, channels: int, sets: Any) -> bool:
    """Whether removing channels before the operation is the same as removing them after it.

    Args:
        call: the call of the operation.
        channels: the number of its channels.
        sets: a random set of channels -> those to keep before it, and those to keep after it;
            None for the first half of the former.
    """
    few = _FEW if is_of_keras(call.layer) and channels > _FEW else channels
    random = np.random.default_rng(0)
    for inputs in _inputs(call, random, {channels: few}, heavy=False):
        try:
            whole = [_numpy(output) for output in _run(call, inputs)]
            for _ in range(_SETS):
                kept = random.permutation(few) < max(1, few // 2)
                before, after = sets(kept)
                after = before[: len(before) // 2] if after is None else after
                cut = {t: v[..., before] if v.shape[-1] == few else v for t, v in inputs.items()}
                if not before.any() or not _all_equal(whole, after, _run(call, cut)):
                    return False
            return True
        except Exception:
            continue
    return False


def _run(call: Call, values: Mapping[Tensor, Any]) -> list[Any]:
    """The outputs of a call, in inference mode, for these values of its inputs.

    Values are converted to tensors, since JAX operations take no NumPy arrays.
    """
    tensors = [keras.ops.convert_to_tensor(values[tensor]) for tensor in call.inputs]
    args, kwargs = call.arguments(tensors)
    if getattr(call.layer, "_call_has_training_arg", False):
        kwargs = {**kwargs, "training": False}
    return keras.tree.flatten(call.layer(*args, **kwargs))


def _all_equal(whole: list[np.ndarray], kept: np.ndarray, part: list[Any]) -> bool:
    parts = [_numpy(output) for output in part]
    return all(
        one.shape[-1:] == (len(kept),) and _same(one[..., kept], other)
        for one, other in zip(whole, parts, strict=True)
    )


def is_of_keras(operation: Any) -> bool:
    """Whether an operation is a layer of Keras, without code of the user's."""
    is_layer = isinstance(operation, keras.layers.Layer)
    known = is_layer and type(operation).__module__.startswith("keras.src.layers.")
    return known and not isinstance(operation, keras.layers.Lambda)


def _inputs(
    call: Call, random: np.random.Generator, sizes: Mapping[int, int], *, heavy: bool
) -> Iterator[Inputs]:
    """Random inputs: first small images, then inputs of the operation's own size."""
    for side in (_SIDE, None):
        shapes = [_shape(tensor, side, sizes) for tensor in call.inputs]
        largest = max(math.prod(shape) for shape in shapes)
        batch = max(4, min(_BATCH, _NUMBERS // max(1, largest)))
        pairs = zip(call.inputs, shapes, strict=True)
        yield {t: draw((batch, *shape), t.dtype, random, heavy) for t, shape in pairs}


def _shape(tensor: Tensor, side: int | None, sizes: Mapping[int, int]) -> tuple[int, ...]:
    """The shape of one sample in a trial."""
    if len(tensor.shape) < 2:
        return ()
    *between, last = tensor.shape[1:]
    lengths: list[int] = [_UNKNOWN if n is None else min(n, side or n) for n in between]
    lengths.append(_UNKNOWN if last is None else sizes.get(last, last))
    return tuple(lengths)


def draw(
    shape: tuple[int, ...], dtype: str, random: np.random.Generator, heavy: bool = False
) -> np.ndarray:
    """Random numbers of a data type; `heavy`: with magnitudes from 0.01 to 100."""
    if dtype == "bool":
        return random.random(shape) < 0.5
    if not keras.backend.is_float_dtype(dtype):
        return random.integers(0, 2, shape).astype(dtype)
    sizes = np.power(10.0, random.integers(-2, 3, shape)) if heavy else 2.0
    return (random.normal(size=shape) * sizes).astype("float32")


def outputs_for(
    call: Call,
    fill: Callable[[Tensor, np.ndarray], np.ndarray],
    sizes: Mapping[int, int] | None = None,
) -> list[np.ndarray]:
    """The outputs of an operation for random inputs that `fill` has changed.

    Args:
        call: the call of the operation.
        fill: a function from a tensor and random numbers for it to the numbers to use.
        sizes: a number of channels -> the number to use in its place.

    Raises:
        RuntimeError: if the operation raises.
    """
    random = np.random.default_rng(0)
    for inputs in _inputs(call, random, sizes or {}, heavy=True):
        try:
            return [_numpy(o) for o in _run(call, {t: fill(t, v) for t, v in inputs.items()})]
        except Exception:
            continue
    raise RuntimeError(f"{call.layer.name} cannot be run on random numbers.")


def route(call: Call, sides: list[np.ndarray]) -> list[np.ndarray] | None:
    """Where an operation that only moves channels puts them.

    Args:
        call: the call of the operation.
        sides: for each input, a number for each of its channels.

    Returns:
        For each output, the number of each of its channels. None if a channel would get several
        numbers, or if the length of an axis is unknown.
    """
    inputs = {}
    for tensor, numbers in zip(call.inputs, sides, strict=True):
        lengths = [size for size in tensor.shape[1:] if size is not None]
        if len(lengths) < len(tensor.shape) - 1:
            return None
        inputs[tensor] = np.broadcast_to(numbers.astype("int32"), (1, *lengths))
    try:
        outputs = [_numpy(output) for output in _run(call, inputs)]
    except Exception:  # the operation may be the user's
        return None
    flat = [output.reshape(-1, output.shape[-1]) for output in outputs]
    if any((part != part[:1]).any() for part in flat):
        return None
    return [part[0].astype(np.int64) for part in flat]


def _same(one: np.ndarray, other: np.ndarray) -> bool:
    if one.shape != other.shape:
        return False
    return bool(np.allclose(one, other, rtol=1e-4, atol=1e-6, equal_nan=True))


def _numpy(tensor: Any) -> np.ndarray:
    return keras.ops.convert_to_numpy(tensor)
