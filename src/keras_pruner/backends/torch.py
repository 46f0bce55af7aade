"""Operations on PyTorch; `backends/__init__.py` describes them."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np
import torch

from keras_pruner.backends.shared import best_in_groups
from keras_pruner.backends.shared import forget_step as forget_step
from keras_pruner.backends.shared import gather as gather
from keras_pruner.backends.shared import has_value as has_value
from keras_pruner.backends.shared import is_in_parts as is_in_parts
from keras_pruner.backends.shared import is_tracing as is_tracing
from keras_pruner.backends.shared import jit_of_short_training as jit_of_short_training
from keras_pruner.backends.shared import masking_updates as masking_updates
from keras_pruner.backends.shared import track as track
from keras_pruner.selection import top_k

CHUNK = 1 << 17
"""Entries zeroed in one go: what is widened for it stays in the processor's cache."""

_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor's bits as integers, whose product with 0 is 0.0: never NaN, never -0.0."""
    return tensor.view(_INTEGERS[tensor.element_size()])


def mask_gradient(gradient: torch.Tensor, mask: keras.Variable) -> torch.Tensor:
    """The gradient with zeros where the mask is False, in place: it is not used again.

    A new tensor of its size in every step would cost more than the product.
    """
    zero([gradient], mask.value)
    return gradient


def zero_pruned(variables: Sequence[keras.Variable], masks: Sequence[keras.Variable]) -> None:
    """Set the variables to exactly 0.0 where the masks are False, in place."""
    for variable, mask in zip(variables, masks, strict=True):
        zero([variable.value], mask.value)


@torch.no_grad()
def zero(tensors: Sequence[torch.Tensor], mask: torch.Tensor) -> None:
    """Set the tensors to exactly 0.0 where the mask is False, in place.

    The bits are multiplied with the mask as integers, which gives 0 for NaN and infinity as well.
    Large tensors are done in parts, since PyTorch first widens the mask to the tensor's type.
    """
    mask = mask.view(torch.uint8)
    for tensor in tensors:
        bits = _bits(tensor.detach())
        rows = max(1, CHUNK // max(1, bits[:1].numel()))
        for part, kept in zip(bits.split(rows), mask.split(rows), strict=True):
            part.mul_(kept)


def is_on_cpu(tensor: torch.Tensor) -> bool:
    """Whether the tensor is on the CPU."""
    return tensor.device.type == "cpu"


def is_in_memory(variable: keras.Variable) -> bool:
    """Whether NumPy can read the value without a copy."""
    return variable.value.device.type == "cpu"


def parts(*variables: keras.Variable) -> Iterator[tuple[np.ndarray, ...]]:
    """The whole value, which every process has."""
    yield tuple(map(to_numpy, variables))


def copies(variable: keras.Variable) -> Iterator[tuple[str, np.ndarray]]:
    """The copy of this process."""
    yield "", to_numpy(variable)


def processes() -> int:
    """The number of processes in the job."""
    return torch.distributed.get_world_size() if _is_in_group() else 1


def _is_in_group() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def gather_copies(model: keras.Model, rows: np.ndarray) -> np.ndarray:
    """The rows of all processes of the default group, concatenated."""
    del model
    if not _is_in_group():
        return rows
    found: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(found, rows)
    return np.concatenate(found)


def count_from(variable: keras.Variable, mask: keras.Variable, score: float) -> int:
    """The number of entries with at least this score."""
    counts = [(scores >= score).sum() for scores, *_ in _parts(variable, mask)]
    return int(torch.stack(counts).sum())


def count_equal(variable: keras.Variable, mask: keras.Variable, score: float, last: int) -> int:
    """The number of entries with this score, up to the flat index `last`."""
    counts = [
        ((scores == score) & (indices <= last)).sum()
        for scores, indices, _ in _parts(variable, mask)
    ]
    return int(torch.stack(counts).sum())


def cut(variable: keras.Variable, mask: keras.Variable, score: float, last: int) -> None:
    """Set the mask to that of a cut, and the variable to zero where it is False; in place."""
    value, kept = variable.value.detach(), mask.value
    in_numpy = value.dtype != torch.bfloat16 and value.is_contiguous()  # without a copy
    if is_in_memory(variable) and in_numpy:
        found = top_k.Cut(score, last)
        top_k.cut_in_place(value.view(-1).numpy(), kept.view(-1).numpy(), found)
        return
    for scores, indices, kept in _parts(variable, mask):
        kept.copy_((scores > score) | ((scores == score) & (indices <= last)))
    zero([value], mask.value)


@torch.no_grad()
def keep_in_groups(
    variable: keras.Variable, mask: keras.Variable, shape: tuple[int, ...], n: int, m: int
) -> None:
    """Set the mask to that of `patterns.NM(n, m)`."""
    scores = keras.ops.reshape(_scores(variable.value, mask.value), shape)
    mask.assign(keras.ops.reshape(best_in_groups(scores, n, m), mask.shape))


def _parts(variable: keras.Variable, mask: keras.Variable) -> Iterator[Sequence[torch.Tensor]]:
    """Scores, flat indices and the mask, one part of the flat weight at a time."""
    values, kept = variable.value.detach().reshape(-1), mask.value.view(-1)
    for start in range(0, len(values), CHUNK):
        value, part = values[start : start + CHUNK], kept[start : start + CHUNK]
        indices = torch.arange(start, start + len(value), device=value.device)
        yield _scores(value, part), indices, part


def _scores(value: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The magnitudes, -1 for pruned entries."""
    wide = torch.promote_types(value.dtype, torch.float32)
    return torch.where(mask, value.abs().to(wide), -1)


def to_numpy(variable: keras.Variable) -> np.ndarray:
    """The value as a NumPy array; on a CPU a view of PyTorch's memory."""
    value = variable.value.detach().cpu()
    if value.dtype == torch.bfloat16:  # which NumPy lacks
        return keras.ops.convert_to_numpy(variable.value)
    return value.numpy()


def variable_scope(model: keras.Model) -> contextlib.AbstractContextManager[Any]:
    """Does nothing: Keras places new variables."""
    del model
    return contextlib.nullcontext()


def random_states() -> dict[str, np.ndarray]:
    """The states of PyTorch's generators, from which an unseeded `Dropout` draws."""
    states = {"torch-cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states |= {f"torch-cuda-{i}": s for i, s in enumerate(torch.cuda.get_rng_state_all())}
    return {name: state.numpy() for name, state in states.items()}


def set_random_states(states: dict[str, np.ndarray]) -> None:
    """Set the generators of the devices that exist in this process."""
    for name, state in states.items():
        device = name.removeprefix("torch-")
        if device == "cpu":
            torch.set_rng_state(torch.from_numpy(state))
        elif int(device.removeprefix("cuda-")) < torch.cuda.device_count():
            torch.cuda.set_rng_state(torch.from_numpy(state), int(device.removeprefix("cuda-")))


def is_readable(value: torch.Tensor) -> bool:
    """Always True: PyTorch runs operations at once."""
    del value
    return True


def peek(variable: keras.Variable) -> list[int] | None:
    """The numbers of a vector on the CPU; None on a device that may still be computing them."""
    return variable.value.tolist() if is_in_memory(variable) else None


def eagerly() -> contextlib.AbstractContextManager[Any]:
    """Does nothing: there is no trace to leave."""
    return contextlib.nullcontext()


def sync(model: keras.Model) -> None:
    """Does nothing: variables are always up to date."""
    del model


def is_own_optimizer(optimizer: object) -> bool:
    """Whether this is an optimizer of the backend that can prune."""
    return isinstance(optimizer, torch.optim.Optimizer)


def without_gradients() -> contextlib.AbstractContextManager[Any]:
    """A context in which no backward pass is recorded."""
    return torch.no_grad()
