"""Operations on JAX; `backends/__init__.py` describes them."""

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

    A large array that belongs to this variable alone is donated and overwritten, as Keras' own
    training step does with all arrays. A variable and its average may share one array.
    """
    shared = Counter(id(variable._value) for variable in variables)
    for variable, mask in zip(variables, masks, strict=True):
        alone = shared[id(variable._value)] == 1
        zero = _zero_in_place if alone and _may_be_overwritten(variable) else _zero
        variable.assign(zero(variable.value, mask.value))


def _may_be_overwritten(variable: keras.Variable) -> bool:
    """Whether the variable's array is large and used nowhere else."""
    if in_stateless_scope():
        return False
    value = variable.value
    return is_readable(value) and value is variable._value and value.size >= LARGE


def _zero(value: jax.Array, mask: jax.Array) -> jax.Array:
    return jnp.where(mask, value, 0)


_zero_in_place = jax.jit(_zero, donate_argnums=0)


def is_on_cpu(tensor: jax.Array) -> bool:
    """Whether the tensor is on the CPU."""
    return all(device.platform == "cpu" for device in tensor.devices())


def is_in_memory(variable: keras.Variable) -> bool:
    """Whether NumPy can read the value without a copy."""
    value = variable.value
    return value.is_fully_replicated and next(iter(value.devices())).platform == "cpu"


def is_in_parts(variable: keras.Variable) -> bool:
    """Whether the value is sharded over several devices."""
    return not variable.value.is_fully_replicated


def parts(*variables: keras.Variable) -> Iterator[tuple[np.ndarray, ...]]:
    """The parts in this process, each once."""
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
    """All-gather: stacks one array per process; None if this process has the whole value."""
    return None if _has_all_parts(variable.value) else _gather


def _has_all_parts(value: jax.Array) -> bool:
    """Whether every process has all parts of the value on its devices."""
    parts: dict[int, set[str]] = {}
    for device, index in value.sharding.devices_indices_map(value.shape).items():
        parts.setdefault(device.process_index, set()).add(str(index))
    return len(set(map(frozenset, parts.values()))) == 1


def copies(variable: keras.Variable) -> Iterator[tuple[str, np.ndarray]]:
    """Every copy of every part in this process."""
    for shard in variable.value.addressable_shards:
        yield str(shard.index), _view(shard.data)


def gather_copies(model: keras.Model, rows: np.ndarray) -> np.ndarray:
    """The rows of all processes, concatenated."""
    del model
    return _gather(rows).reshape(-1, *rows.shape[1:])


def processes() -> int:
    """The number of processes in the job."""
    return jax.process_count()


def _gather(numbers: np.ndarray) -> np.ndarray:
    """One array per process, stacked. Sent as bytes: JAX would convert float64 to float32."""
    if jax.process_count() == 1:
        return numbers[None]
    numbers = np.ascontiguousarray(numbers)
    found = np.asarray(multihost_utils.process_allgather(numbers.reshape(-1).view(np.uint8)))
    return found.reshape(jax.process_count(), -1).view(numbers.dtype).reshape(-1, *numbers.shape)


def count_from(variable: keras.Variable, mask: keras.Variable, score: float) -> int:
    """The number of entries with at least this score."""
    return int(_count_from(variable.value, mask.value, score))


def count_equal(variable: keras.Variable, mask: keras.Variable, score: float, last: int) -> int:
    """The number of entries with this score, up to the flat index `last`."""
    return int(_count_equal(variable.value, mask.value, score, np.uint32(last)))


def cut(variable: keras.Variable, mask: keras.Variable, score: float, last: int) -> None:
    """Set the mask to that of a cut, and the variable to zero where it is False."""
    value = variable.value
    cut = _cut_in_place if _may_be_overwritten(variable) else _cut
    kept, value = cut(value, mask.value, score, np.uint32(last))
    mask.assign(kept)
    variable.assign(value)


def _scores(value: jax.Array, mask: jax.Array) -> jax.Array:
    """The magnitudes, -1 for pruned entries; sharded like the value."""
    wide = jnp.promote_types(value.dtype, jnp.float32)
    return jnp.where(mask, jnp.abs(value).astype(wide), -1)


def _indices(value: jax.Array) -> jax.Array:
    """The index of each entry in the flat array."""
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
    """Set the mask to that of `patterns.NM(n, m)`, computed on the devices that have the weight."""
    mask.assign(_keep_in_groups(variable.value, mask.value, shape, n, m))


@functools.partial(jax.jit, static_argnums=(2, 3, 4))
def _keep_in_groups(
    value: jax.Array, mask: jax.Array, shape: tuple[int, ...], n: int, m: int
) -> jax.Array:
    kept = best_in_groups(_scores(value, mask).reshape(shape), n, m)
    return kept.reshape(value.shape)


def to_numpy(variable: keras.Variable) -> np.ndarray:
    """The value as a NumPy array; on a CPU a view of JAX' memory."""
    value = variable.value
    if value.is_fully_replicated:
        return _view(value.addressable_data(0))
    if value.is_fully_addressable:
        return np.asarray(value)
    return multihost_utils.process_allgather(value, tiled=True)


def _view(value: jax.Array) -> np.ndarray:
    """The array of one device; on a CPU a view of its memory."""
    if next(iter(value.devices())).platform == "cpu" and value.dtype != jnp.bfloat16:
        return np.from_dlpack(value)  # np.asarray would copy booleans, and keep the copy
    return np.asarray(value)  # DLPack lacks bfloat16


def variable_scope(model: keras.Model) -> contextlib.AbstractContextManager[Any]:
    """Does nothing: Keras places variables by their layout."""
    del model
    return contextlib.nullcontext()


def is_readable(value: Any) -> bool:
    """Whether a value is an array, not a tracer."""
    return not isinstance(value, jax.core.Tracer)


def peek(variable: keras.Variable) -> list[int] | None:
    """The numbers of a vector; None if a step that was dispatched has still to compute them.

    None also for a vector that several processes share: one may see a value that another does not.
    """
    if not has_value(variable) and not in_stateless_scope():
        return None  # `fit` keeps the value elsewhere
    value = variable.value
    if not is_readable(value) or value.is_deleted() or not value.is_fully_addressable:
        return None
    return np.asarray(value).tolist() if value.is_ready() else None


def forget_step(model: keras.Model) -> None:
    """Drop the traces of a model's step, which JAX keeps by its method and the shapes of arguments.

    Otherwise JAX would use a step that was compiled with other masks, as long as one is alive.
    """
    jax.jit(model.train_step).clear_cache()


def is_tracing() -> bool:
    """Whether a function is being traced, as by `jax.jit`. Called in every step, so it is cheap."""
    return not trace_state_clean()


def has_value(variable: keras.Variable) -> bool:
    """Whether the variable has a value: not in a step of `fit`, nor after one that failed."""
    return variable._value is not None


def eagerly() -> contextlib.AbstractContextManager[Any]:
    """Does nothing: JAX cannot read values within a trace."""
    return contextlib.nullcontext()


def sync(model: keras.Model) -> None:
    """Update the variables: in `fit`, Keras keeps their values elsewhere on JAX."""
    model.jax_state_sync()


def is_own_optimizer(optimizer: object) -> bool:
    """Whether this is an optimizer of the backend that can prune."""
    del optimizer
    return False


def without_gradients() -> contextlib.AbstractContextManager[Any]:
    """Does nothing: gradients are recorded only on request."""
    return contextlib.nullcontext()
