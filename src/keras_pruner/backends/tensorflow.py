"""Operations on TensorFlow; `backends/__init__.py` describes them."""

import contextlib
import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_pruner.backends import keras_private
from keras_pruner.backends.shared import best_in_groups
from keras_pruner.backends.shared import forget_step as forget_step
from keras_pruner.backends.shared import gather as gather
from keras_pruner.backends.shared import has_value as has_value
from keras_pruner.backends.shared import is_in_parts as is_in_parts
from keras_pruner.backends.shared import random_states as random_states
from keras_pruner.backends.shared import set_random_states as set_random_states

_INTEGERS = {2: tf.int16, 4: tf.int32, 8: tf.int64}


def _masked(tensor: Any, mask: Any) -> tf.Tensor:
    """The tensor with exactly 0.0 where the mask is False.

    Its bits are multiplied with the mask as integers, which gives 0 for NaN as well.
    """
    integer = _INTEGERS[tensor.dtype.size]
    product = tf.bitcast(tensor, integer) * tf.cast(mask, integer)
    return tf.bitcast(product, tensor.dtype)


def _fused(function: Callable[..., None]) -> Callable[..., None]:
    """The function compiled by XLA: one pass, in the variable's own memory. Only within a trace.

    It is made anew each time, since a function of TensorFlow remembers the variables of its first
    call, and fails in the trace of another model's step when those are gone. It is a partial, since
    TensorFlow counts the traces of all functions with the same code, and warns of many.
    """
    return tf.function(functools.partial(function), jit_compile=True)


def _zero_in_place(variable: tf.Variable, mask: tf.Variable) -> None:
    variable.assign(tf.where(mask, variable, tf.zeros((), variable.dtype)))


def _subtract_in_place(variable: tf.Variable, update: tf.Tensor, mask: tf.Variable) -> None:
    variable.assign(tf.where(mask, variable - update, tf.zeros((), variable.dtype)))


@contextlib.contextmanager
def masking_updates(
    optimizer: keras.optimizers.Optimizer, masks: Mapping[object, keras.Variable]
) -> Iterator[set[object]]:
    """A context in which the optimizer's subtraction also zeroes the pruned weights.

    The subtraction writes all weights in any case, so zeroing some costs next to nothing
    (benchmarks/zero_in_place.py). Does nothing on replicas and outside of a trace.
    """
    updated: set[object] = set()

    def assign_sub(variable: Any, value: Any) -> None:
        key = keras_private.key_of(optimizer, variable)
        mask = masks.get(key)
        if mask is None or isinstance(value, tf.IndexedSlices) or not _is_on_cpu(variable):
            type(optimizer).assign_sub(optimizer, variable, value)
            return
        _fused(_subtract_in_place)(variable, tf.cast(value, variable.dtype), mask.value)
        updated.add(key)

    if tf.distribute.has_strategy() or tf.executing_eagerly():
        yield updated
        return
    vars(optimizer)["assign_sub"] = assign_sub  # called by `update_step`
    try:
        yield updated
    finally:
        del vars(optimizer)["assign_sub"]


def track(optimizer: keras.optimizers.Optimizer, variables: Sequence[keras.Variable]) -> None:
    """Let `tf.train.Checkpoint` save these variables with the optimizer."""
    holder = tf.Module()
    holder.variables_of_pruning = [variable.value for variable in variables]
    optimizer._track_trackable(holder, name="pruning", overwrite=True)


def _is_on_cpu(variable: tf.Variable) -> bool:
    return "CPU" in variable.device


def mask_gradient(gradient: Any, mask: keras.Variable) -> Any:
    """The gradient with zeros where the mask is False; rows of it for `tf.IndexedSlices`."""
    if isinstance(gradient, tf.IndexedSlices):
        values = _masked(gradient.values, tf.gather(mask.value, gradient.indices))
        return tf.IndexedSlices(values, gradient.indices, gradient.dense_shape)
    return _masked(gradient, mask.value)


def zero_pruned(variables: Sequence[keras.Variable], masks: Sequence[keras.Variable]) -> None:
    """Set the variables to exactly 0.0 where the masks are False.

    `extended.update` writes each replica's copy from that replica's mask: assigning in a replica
    context instead would make TensorFlow all-reduce the weights.
    """
    pairs = [(v.value, m.value) for v, m in zip(variables, masks, strict=True)]

    def zero(variable: tf.Variable, mask: tf.Tensor) -> None:
        variable.assign(_masked(variable, mask))

    def update(strategy: tf.distribute.Strategy, pairs: Any) -> None:
        for variable, mask in pairs:
            strategy.extended.update(variable, zero, args=(mask,), group=False)

    replica = tf.distribute.get_replica_context()
    if replica is None:
        update(tf.distribute.get_strategy(), pairs)
    elif tf.distribute.has_strategy():
        replica.merge_call(update, args=(pairs,))
    else:
        for variable, mask in pairs:
            fuses = _is_on_cpu(variable) and not tf.executing_eagerly()
            (_fused(_zero_in_place) if fuses else zero)(variable, mask)


def is_on_cpu(tensor: tf.Tensor) -> bool:
    """Whether the tensor is on the CPU."""
    return "CPU" in tensor.device


def is_in_memory(variable: keras.Variable) -> bool:
    """Whether NumPy can read the value without a copy."""
    return "CPU" in tf.convert_to_tensor(variable.value).device


def parts(*variables: keras.Variable) -> Iterator[tuple[np.ndarray, ...]]:
    """The whole value, which every process has."""
    yield tuple(map(to_numpy, variables))


def copies(variable: keras.Variable) -> Iterator[tuple[str, np.ndarray]]:
    """The copy of every replica in this process."""
    value = variable.value
    for copy in value.values if isinstance(value, tf.distribute.DistributedValues) else [value]:
        yield "", copy.numpy()


def processes() -> int:
    """Always 1: Keras' `fit` does not run on several workers."""
    return 1


def gather_copies(model: keras.Model, rows: np.ndarray) -> np.ndarray:
    """The rows of all processes, concatenated."""
    strategy = model.distribute_strategy
    if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        return rows
    given = itertools.chain([rows], itertools.repeat(rows[:0]))  # by the first replica of each
    each = strategy.experimental_distribute_values_from_function(
        lambda _: tf.constant(next(given), tf.int32)  # bytes cannot be gathered
    )
    return strategy.gather(each, axis=0).numpy().astype(rows.dtype)


def count_from(variable: keras.Variable, mask: keras.Variable, score: float) -> int:
    """The number of entries with at least this score."""
    return int(tf.math.count_nonzero(_scores(variable.value, mask.value) >= score))


def count_equal(variable: keras.Variable, mask: keras.Variable, score: float, last: int) -> int:
    """The number of entries with this score, up to the flat index `last`."""
    scores = _scores(variable.value, mask.value)
    return int(tf.math.count_nonzero((scores == score) & _is_up_to(last, scores)))


def cut(variable: keras.Variable, mask: keras.Variable, score: float, last: int) -> None:
    """Set the mask to that of a cut, and the variable to zero where it is False.

    Both are assigned as a whole: after an assignment to a part of a variable, TensorFlow copies
    the variable each time it is read.
    """
    end = tf.constant(last, tf.int64)
    value = variable.value
    is_mirrored = isinstance(value, tf.distribute.DistributedValues)
    if is_mirrored or not _is_on_cpu(value) or value.device != mask.value.device:
        mask.assign(_kept(value, mask.value, tf.constant(score, tf.float64), end))
        zero_pruned([variable], [mask])
    else:
        is_traced = tf.compat.v1.get_default_graph().building_function  # around `eagerly`
        in_place = _fused(_cut_in_place) if is_traced else _untraced_cut(value.shape, value.dtype)
        with tf.device(value.device):  # XLA refuses variables of another device than its own
            in_place(value, mask.value, tf.constant(score, tf.float64), end)


def _cut_in_place(
    variable: tf.Variable, mask: tf.Variable, score: tf.Tensor, last: tf.Tensor
) -> None:
    kept = _kept(variable, mask, score, last)
    variable.assign(tf.where(kept, variable, tf.zeros((), variable.dtype)))
    mask.assign(kept)


@functools.cache
def _untraced_cut(shape: tf.TensorShape, dtype: tf.DType) -> Callable[..., None]:
    """`cut` without retracing: one function for all variables of a shape and type."""
    del shape, dtype
    return _fused(_cut_in_place)


def keep_in_groups(
    variable: keras.Variable, mask: keras.Variable, shape: tuple[int, ...], n: int, m: int
) -> None:
    """Set the mask to that of `patterns.NM(n, m)`."""
    scores = keras.ops.reshape(_scores(variable.value, mask.value), shape)
    mask.assign(keras.ops.reshape(best_in_groups(scores, n, m), mask.shape))


def _kept(value: Any, mask: Any, score: tf.Tensor, last: tf.Tensor) -> tf.Tensor:
    """The mask of a cut."""
    scores = _scores(value, mask)
    score = tf.cast(score, scores.dtype)
    return (scores > score) | ((scores == score) & _is_up_to(last, scores))


def _scores(value: Any, mask: Any) -> tf.Tensor:
    """The magnitudes, -1 for pruned entries."""
    scores = tf.abs(value)
    scores = tf.cast(scores, tf.float32) if scores.dtype.size < 4 else scores
    return tf.where(mask, scores, tf.constant(-1, scores.dtype))


def _is_up_to(last: Any, scores: tf.Tensor) -> tf.Tensor:
    """Whether each entry has a flat index of at most `last`."""
    size = scores.shape.num_elements()
    index = tf.int32 if size <= tf.int32.max else tf.int64
    return tf.reshape(tf.range(size, dtype=index) <= tf.cast(last, index), scores.shape)


def to_numpy(variable: keras.Variable) -> np.ndarray:
    """The value as a NumPy array; on a CPU a view of TensorFlow's memory."""
    value = tf.convert_to_tensor(variable.value)
    if value.dtype == tf.bfloat16:  # which the buffer protocol lacks
        return value.numpy()
    return np.asarray(memoryview(value))


def variable_scope(model: keras.Model) -> contextlib.AbstractContextManager[Any]:
    """The scope of the distribution strategy that the model was made in, if any."""
    strategy = getattr(model, "distribute_strategy", None)
    return contextlib.nullcontext() if strategy is None else strategy.scope()


def is_readable(value: tf.Variable) -> bool:
    """Whether a variable has a value; it has none in the trace that creates it."""
    with tf.init_scope():
        return bool(value.is_initialized())


def peek(variable: keras.Variable) -> list[int] | None:
    """The numbers of a vector on the CPU, without the checks of `variable.numpy()`."""
    value = variable.value
    is_many = isinstance(value, tf.distribute.DistributedValues)
    if is_many or not tf.executing_eagerly() or not _is_on_cpu(value):
        return None
    return tf.raw_ops.ReadVariableOp(resource=value.handle, dtype=value.dtype).numpy().tolist()


def jit_of_short_training() -> bool:
    """False: XLA would compile the whole step before the first one runs."""
    return False


def is_tracing() -> bool:
    """Whether a graph is being built, as by `tf.function`."""
    return not tf.executing_eagerly()


def eagerly() -> contextlib.AbstractContextManager[Any]:
    """Leave the function that is being traced."""
    return tf.init_scope()


def sync(model: keras.Model) -> None:
    """Does nothing: variables are always up to date."""
    del model


def is_own_optimizer(optimizer: object) -> bool:
    """Whether this is an optimizer of the backend that can prune."""
    del optimizer
    return False


def without_gradients() -> contextlib.AbstractContextManager[Any]:
    """Does nothing: gradients are recorded only on request."""
    return contextlib.nullcontext()
