"""The state of a pruning, and what a checkpoint stores: masks, progress and settings."""

import dataclasses
import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, Protocol

import numpy as np

from keras_pruner import backends
from keras_pruner.masks import MaskedWeight
from keras_pruner.plan import Plan
from keras_pruner.schedules import Schedule
from keras_pruner.validation import shown

_BILLION = 10**9


@dataclasses.dataclass(frozen=True)
class PruningState:
    """The progress of a schedule.

    Attributes:
        schedule: before it begins, as the user gave it; then with what was open filled in.
        step: updates of the weights completed since the schedule began; -1 before that.
        updated_at: the step of the last mask update; -1 before the first.
        epoch: the epoch of `fit` in which the schedule began; -1 before that and in other loops.
    """

    schedule: Schedule
    step: int = -1
    updated_at: int = -1
    epoch: int = -1

    SETTLED: ClassVar = ("begin_step", "end_step", "frequency", "initial_sparsity")

    @property
    def has_begun(self) -> bool:
        """Whether steps are counted."""
        return self.step >= 0

    @property
    def has_ended(self) -> bool:
        """Whether the last mask update was the schedule's last."""
        end_step = self.schedule.end_step
        return end_step is not None and 0 <= end_step <= self.updated_at

    @classmethod
    def begin(cls, given: Schedule, settled: Schedule, epoch: int = -1) -> "PruningState":
        """The state at step 0, with the rounding that reading it from a checkpoint would have."""
        return cls.from_numbers(given, 0, cls(settled, 0, epoch=epoch).settled_numbers())

    def updated(self) -> "PruningState":
        """The state after a mask update at the present step."""
        return dataclasses.replace(self, updated_at=self.step)

    def settled_numbers(self) -> list[int]:
        """`updated_at`, `epoch` and the filled-in fields of the schedule, as integers.

        A field that is still open is -1; the initial sparsity is in billionths. All numbers are -1
        before the schedule begins.
        """
        if not self.has_begun:
            return [-1] * (2 + len(self.SETTLED))
        found = [getattr(self.schedule, name, None) for name in self.SETTLED]
        numbers = [-1 if number is None else number for number in found]
        numbers[-1] = round(numbers[-1] * _BILLION) if numbers[-1] >= 0 else -1
        return [self.updated_at, self.epoch, *map(int, numbers)]

    @classmethod
    def from_numbers(cls, given: Schedule, step: int, numbers: Sequence[int]) -> "PruningState":
        """The state from its numbers and the schedule as it was given."""
        updated_at, epoch, *settled = map(int, numbers)
        known: dict[str, Any] = {
            name: number for name, number in zip(cls.SETTLED, settled, strict=True) if number >= 0
        }
        if "initial_sparsity" in known:
            known["initial_sparsity"] /= _BILLION
        schedule = given
        if step >= 0 and dataclasses.is_dataclass(given):
            fields = {field.name for field in dataclasses.fields(given)}
            changes = {name: value for name, value in known.items() if name in fields}
            schedule = dataclasses.replace(given, **changes)
        return cls(schedule, int(step), updated_at, epoch)


Unattended = Literal["refuse", "warn"] | None
"""What a step does if no pruner has called `update`: raise, warn, or (None) nothing."""


class Pruning(Protocol):
    """One schedule on one optimizer, with its masks; what a `Pruner` works with.

    `KerasPruning` is on an optimizer of Keras, `TorchPruning` on one of `torch.optim`.

    Attributes:
        schedule: as the user gave it.
        masked: the targets that the optimizer trains, with their masks.
        applied: whether the optimizer has made, or traced, a step that prunes in this process.
        loads: the number of times that its state was loaded.
        unattended: what a step does if no pruner has called `update`.
        attended_to: the last step for which a pruner has called `update`.
    """

    schedule: Schedule
    masked: tuple[MaskedWeight, ...]
    applied: bool
    loads: int
    unattended: Unattended
    attended_to: int

    @property
    def plan(self) -> Plan:
        """What is pruned."""

    @property
    def built(self) -> bool:
        """Whether there are masks."""

    @property
    def is_readable(self) -> bool:
        """Whether the state can be read now, and is not a symbol in a trace."""

    @property
    def state(self) -> PruningState:
        """The progress of the schedule; can be set."""

    @state.setter
    def state(self, state: PruningState) -> None: ...

    def peek(self) -> list[int] | None:
        """The state's `settled_numbers`; None if to read them would wait for a step to end."""

    @property
    def iterations(self) -> int:
        """The optimizer's own count of its steps."""

    @property
    def accumulation(self) -> int:
        """The number of batches in one step."""

    def zero_pruned(self) -> None:
        """Set every pruned weight and its average to 0.0."""

    def zero_companions(self) -> None:
        """Set to 0.0 the averages of pruned weights, and their slots if others depend on them."""

    def release(self) -> None:
        """Remove the masks from the optimizer."""


# -------------------------------------------------------------------- as arrays


def save_pruning(pruning: Pruning) -> dict[str, np.ndarray]:
    """The masks (one bit per weight), the state and the settings as arrays."""
    state = pruning.state
    arrays = {
        "state": np.array([state.step, *state.settled_numbers()], np.int64),
        "settings": as_bytes(_settings(pruning, state)),
    }
    for i, each in enumerate(pruning.masked):
        arrays[f"mask{i}"] = np.packbits(backends.current().to_numpy(each.mask))
    return arrays


def load_pruning(pruning: Pruning, arrays: Mapping[str, np.ndarray]) -> None:
    """Restore a pruning from the arrays of `save_pruning`.

    The schedules may differ in length: the pruning keeps the length with which it began.

    Raises:
        ValueError: if there is no pruning state, or one of another plan or final sparsity;
            nothing is changed then.
    """
    if "state" not in arrays:
        raise ValueError(
            "The file holds no pruning state: it was saved by a training without pruning. Load "
            "it before the pruning begins, with the optimizer it was saved with."
        )
    _check_masks({k: a.shape for k, a in arrays.items() if k.startswith("mask")}, pruning.masked)
    step, *numbers = arrays["state"].tolist()
    state = PruningState.from_numbers(pruning.schedule, step, numbers)
    _check_settings(from_bytes(arrays["settings"]), _settings(pruning, state))
    for i, each in enumerate(pruning.masked):
        bits = np.unpackbits(arrays[f"mask{i}"], count=_size(each))
        each.mask.assign(bits.reshape(each.variable.shape).astype(bool))
    pruning.state = state
    pruning.loads += 1


def as_bytes(data: Any) -> np.ndarray:
    """JSON data as an array of bytes."""
    return np.array(list(json.dumps(data).encode()), np.uint8)


def from_bytes(array: np.ndarray) -> Any:
    """The JSON data in an array of bytes."""
    return json.loads(bytes(np.asarray(array, np.uint8)))


def _check_masks(found: Mapping[str, tuple[int, ...]], masked: Sequence[MaskedWeight]) -> None:
    expected = {f"mask{i}": (-(-_size(each) // 8),) for i, each in enumerate(masked)}
    if found == expected:
        return
    differing = [
        each.target.path
        for i, each in enumerate(masked)
        if found.get(f"mask{i}") != expected[f"mask{i}"]
    ]
    raise ValueError(
        f"The file holds the pruning state of another plan: {len(found)} masks, where this "
        f"one has {len(expected)}; these differ: {differing}. Prune with the arguments it "
        "was saved with."
    )


def _check_settings(then: dict[str, Any], now: dict[str, Any]) -> None:
    differing = [
        f"{name} was {shown(then.get(name))} and is {shown(now[name])}"
        for name in now
        if then.get(name) != now[name]
    ]
    if differing:
        final = then.get("final sparsity")
        example = f", as in kp.GradualPruning({final:g})" if final else ""
        raise ValueError(
            f"The file holds the state of another pruning: {'; '.join(differing)}. To go on with "
            f"it, prune with the arguments it was saved with{example}; to begin anew, do not load "
            "it (give a callback that makes backups another directory)."
        )


def _settings(pruning: Pruning, state: PruningState) -> dict[str, Any]:
    """The settings that determine the masks, by name, to detect a checkpoint of another run.

    The names of the weights are left out, since they may change between runs.
    """
    patterns = [_name(m.target.pattern) for m in pruning.masked]
    final = state.schedule.sparsity_at_end
    own = [m.target.sparsity for m in pruning.masked]
    return {
        "final sparsity": None if final is None else float(final),
        "pattern": patterns[0] if len(set(patterns)) == 1 else patterns,
        "sparsity of single weights": [None if s is None else float(s) for s in own],
        "allocation": _name(pruning.plan.allocation),
        "criterion": _name(pruning.plan.criterion),
    }


def _name(value: Any) -> str:
    """A function by its name, a value by its repr; the same in every process."""
    name = getattr(value, "__name__", None) or repr(value)
    return re.sub(r" at 0x[0-9a-f]+|np\.\w+\(([^()]*)\)", r"\1", name)


def _size(masked: MaskedWeight) -> int:
    return math.prod(masked.variable.shape)
