"""JAX."""

import contextlib
import functools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import keras
import numpy as np
from jax._src.core import trace_state_clean
from jax.experimental import multihost_utils

from keras_pruner.backends.keras_private import in_stateless_scope
from keras_pruner.backends.shared import best_in_groups
from keras_pruner.backends.shared import jit_of_short_training as jit_of_short_training
from keras_pruner.backends.shared import masking_updates as masking_updates
from keras_pruner.backends.shared import random_states as random_states
from keras_pruner.backends.shared import set_random_states as set_random_states
from keras_pruner.backends.shared import track as track


def mask_gradient(gradient: jax.Array, mask: keras.Variable) -> jax.Array:
    """The gradient with zeros where the mask is False."""
    return jnp.where(mask.value, gradient, 0)


LARGE = 1 << 27
"""Entries from which a second copy may not fit beside the first."""


def zero_pruned(variables: Sequence[keras.Variable], masks: Sequence[keras.Variable]) -> None:
    """Set the variables to exactly 0.0 where the masks are False.

    A large array that belongs to the variable alone is given up to be written over, as Keras'
    own training step does with all of them. A variable and its average may be one array.
    """
    shared = Counter(id(variable._value) for variable in variables)
    for variable, mask in zip(variables, masks, strict=True):
        alone = shared[id(variable._value)] == 1
        zero = _zero_in_place if alone and _may_be_overwritten(variable) else _zero
        variable.assign(zero(variable.value, mask.value))


def _may_be_overwritten(variable: keras.Variable) -> bool:
    """Whether a large array is the variable's own, and no value that was handed in."""
    if in_stateless_scope():
        return False
    value = variable.value
    return is_readable(value) and value is variable._value and value.size >= LARGE


def _zero(value: jax.Array, mask: jax.Array) -> jax.Array:
    return jnp.where(mask, value, 0)


_zero_in_place = jax.jit(_zero, donate_argnums=0)


def is_on_cpu(tensor: jax.Array) -> bool:
    """Whether the CPU computes with the tensor."""
    return all(device.platform == "cpu" for device in tensor.devices())


def is_in_memory(variable: keras.Variable) -> bool:
    """Whether NumPy can look at the value where it is."""
    value = variable.value
    return value.is_fully_replicated and next(iter(value.devices())).platform == "cpu"


def is_in_parts(variable: keras.Variable) -> bool:
    """Whether the value lies on several devices, a part on each."""
    return not variable.value.is_fully_replicated


def parts(*variables: keras.Variable) -> Iterator[tuple[np.ndarray, ...]]:
    """The parts that are in this process, each once."""
    if not is_in_parts(variables[0]):
        yield tuple(map(to_numpy, variables))
        return
    whole, seen = _has_all_parts(variables[0].value), set()
    shards = [variable.value.addressable_shards for variable in variables]
    for together in zip(*shards, strict=True):
        part = str(together[0].index)
        if part not in seen and (whole or together[0].replica_id == 0):
            seen.add(part)
            yield tuple(_view(shard.data) for shard in together)


def gather(variable: keras.Variable) -> Callable[[np.ndarray], np.ndarray] | None:
    """What brings arrays of each process together, if the value is in several's parts."""
    return None if _has_all_parts(variable.value) else _gather


def _has_all_parts(value: jax.Array) -> bool:
    """Whether the devices of every process have all parts among them."""
    parts: dict[int, set[str]] = {}
    for device, index in value.sharding.devices_indices_map(value.shape).items():
        parts.setdefault(device.process_index, set()).add(str(index))
    return len(set(map(frozenset, parts.values()))) == 1


def copies(variable: keras.Variable) -> Iterator[tuple[str, np.ndarray]]:
    """Every copy of every part in this process."""
    for shard in variable.value.addressable_shards:
        yield str(shard.index), _view(shard.data)


def gather_copies(model: keras.Model, rows: np.ndarray) -> np.ndarray:
    """An array of each process, one after another."""
    del model
    return _gather(rows).reshape(-1, *rows.shape[1:])


def processes() -> int:
    """How many processes know of each other."""
    return jax.process_count()


def _gather(numbers: np.ndarray) -> np.ndarray:
    """An array of each process, bit by bit: JAX would make float32 of float64."""
    if jax.process_count() == 1:
        return numbers[None]
    numbers = np.ascontiguousarray(numbers)
    found = np.asarray(multihost_utils.process_allgather(numbers.reshape(-1).view(np.uint8)))
    return found.reshape(jax.process_count(), -1).view(numbers.dtype).reshape(-1, *numbers.shape)


def count_from(variable: keras.Variable, mask: keras.Variable, score: float) -> int:
    """How many entries score `score` or more."""
    return int(_count_from(variable.value, mask.value, score))


def count_equal(variable: keras.Variable, mask: keras.Variable, score: float, last: int) -> int:
    """How many entries up to the flat index `last` have this score."""
    return int(_count_equal(variable.value, mask.value, score, np.uint32(last)))


def cut(variable: keras.Variable, mask: keras.Variable, score: float, last: int) -> None:
    """Make the mask that of a cut, and the variable zero where it is False."""
    value = variable.value
    cut = _cut_in_place if _may_be_overwritten(variable) else _cut
    kept, value = cut(value, mask.value, score, np.uint32(last))
    mask.assign(kept)
    variable.assign(value)


def _scores(value: jax.Array, mask: jax.Array) -> jax.Array:
    """Magnitudes, and -1 of what is pruned; in parts where the value is in parts."""
    wide = jnp.promote_types(value.dtype, jnp.float32)
    return jnp.where(mask, jnp.abs(value).astype(wide), -1)


def _indices(value: jax.Array) -> jax.Array:
    """Of each entry, in the flat array."""
    indices, stride = jnp.zeros((), jnp.uint32), 1
    for axis in reversed(range(value.ndim)):
        along = jax.lax.broadcasted_iota(jnp.uint32, value.shape, axis)
        indices, stride = indices + along * np.uint32(stride), stride * value.shape[axis]
    return indices


@jax.jit
def _count_from(value: jax.Array, mask: jax.Array, score: float) -> jax.Array:
    return jnp.sum(_scores(value, mask) >= score, dtype=jnp.uint32)


@jax.jit
def _count_equal(value: jax.Array, mask: jax.Array, score: float, last: int) -> jax.Array:
    is_equal = (_scores(value, mask) == score) & (_indices(value) <= last)
    return jnp.sum(is_equal, dtype=jnp.uint32)


def _kept_and_value(
    value: jax.Array, mask: jax.Array, score: float, last: int
) -> tuple[jax.Array, jax.Array]:
    scores = _scores(value, mask)
    kept = (scores > score) | ((scores == score) & (_indices(value) <= last))
    return kept, _zero(value, kept)


_cut = jax.jit(_kept_and_value)
_cut_in_place = jax.jit(_kept_and_value, donate_argnums=(0, 1))


def keep_in_groups(
    variable: keras.Variable, mask: keras.Variable, shape: tuple[int, ...], n: int, m: int
) -> None:
    """Make the mask that of the best in every group, each on the device that has the group."""
    mask.assign(_keep_in_groups(variable.value, mask.value, shape, n, m))


@functools.partial(jax.jit, static_argnums=(2, 3, 4))
def _keep_in_groups(
    value: jax.Array, mask: jax.Array, shape: tuple[int, ...], n: int, m: int
) -> jax.Array:
    kept = best_in_groups(_scores(value, mask).reshape(shape), n, m)
    return kept.reshape(value.shape)


def to_numpy(variable: keras.Variable) -> np.ndarray:
    """The value as a NumPy array; on a CPU a view of JAX's own memory."""
    value = variable.value
    if value.is_fully_replicated:
        return _view(value.addressable_data(0))
    if value.is_fully_addressable:
        return np.asarray(value)
    return multihost_utils.process_allgather(value, tiled=True)


def _view(value: jax.Array) -> np.ndarray:
    """The array of one device; on a CPU its own memory."""
    if next(iter(value.devices())).platform == "cpu" and value.dtype != jnp.bfloat16:
        return np.from_dlpack(value)  # np.asarray would copy booleans, and keep the copy
    return np.asarray(value)  # DLPack lacks bfloat16


def variable_scope(model: keras.Model) -> contextlib.AbstractContextManager[Any]:
    """Nothing to enter: Keras places variables by their layout."""
    del model
    return contextlib.nullcontext()


def is_readable(value: Any) -> bool:
    """Whether a value is an array, not a tracer."""
    return not isinstance(value, jax.core.Tracer)


def peek(variable: keras.Variable) -> list[int] | None:
    """The numbers of a vector, unless they are what a dispatched step has yet to give.

    Nor in several processes, which have to do the same.
    """
    if not has_value(variable) and not in_stateless_scope():
        return None  # `fit` keeps it
    value = variable.value
    if not is_readable(value) or value.is_deleted() or not value.is_fully_addressable:
        return None
    return np.asarray(value).tolist() if value.is_ready() else None


def forget_step(model: keras.Model) -> None:
    """Drop its traces, which JAX keeps by the method and by the shapes of what it is given.

    While any compiled step of the model is alive, it would serve for one with other masks.
    """
    jax.jit(model.train_step).clear_cache()


def is_tracing() -> bool:
    """Whether a function is being traced, as by `jax.jit`; asked in every step, so no operation."""
    return not trace_state_clean()


def has_value(variable: keras.Variable) -> bool:
    """Not in a step of `fit`, and not after one that failed: the arrays are given up for it."""
    return variable._value is not None


def eagerly() -> contextlib.AbstractContextManager[Any]:
    """Nothing to leave: what is traced cannot be looked at."""
    return contextlib.nullcontext()


def sync(model: keras.Model) -> None:
    """Bring the variables up to date: in `fit` JAX keeps their values elsewhere."""
    model.jax_state_sync()


def is_own_optimizer(optimizer: object) -> bool:
    """Whether the backend has optimizers of its own that can be pruned with, and this is one."""
    del optimizer
    return False


def without_gradients() -> contextlib.AbstractContextManager[Any]:
    """Nothing to leave: gradients are recorded only where they are asked for."""
    return contextlib.nullcontext()
