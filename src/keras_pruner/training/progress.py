"""How far a schedule has come: what of it is saved, so that a stopped training goes on."""

import dataclasses
from typing import Any, NamedTuple

from keras_pruner.schedules import Schedule

_PARTS_OF_SPARSITY = 10**9


class Progress(NamedTuple):
    """How far a schedule has come, and what was settled when it began: six integers.

    Attributes:
        origin: updates the optimizer had made when the schedule began; -1 before that.
        updated_at: the step of the last mask update; -1 before the first.
        begin_step: of the resolved schedule.
        end_step: of the resolved schedule; -1 if it has none.
        frequency: of the resolved schedule; -1 if it has none.
        initial_sparsity: of the resolved schedule, in billionths; -1 if it has none.
    """

    origin: int = -1
    updated_at: int = -1
    begin_step: int = -1
    end_step: int = -1
    frequency: int = -1
    initial_sparsity: int = -1

    def begun(self, origin: int, schedule: Schedule) -> "Progress":
        """Note what was settled for a schedule that begins now."""
        settled = (getattr(schedule, name, None) for name in self._settled())
        numbers = [-1 if number is None else number for number in settled]
        numbers[-1] = round(numbers[-1] * _PARTS_OF_SPARSITY) if numbers[-1] >= 0 else -1
        return Progress(origin, -1, *map(int, numbers))

    def restore(self, schedule: Schedule) -> Schedule:
        """The schedule as it was settled when it began."""
        noted = dict(zip(self._settled(), self[2:], strict=True))
        known: dict[str, Any] = {name: number for name, number in noted.items() if number >= 0}
        if "initial_sparsity" in known:
            known["initial_sparsity"] /= _PARTS_OF_SPARSITY
        if not dataclasses.is_dataclass(schedule):
            return schedule
        fields = {field.name for field in dataclasses.fields(schedule)}
        return dataclasses.replace(schedule, **{k: v for k, v in known.items() if k in fields})

    def has_ended(self, schedule: Schedule) -> bool:
        """Whether the last mask update was the schedule's last."""
        end_step = self.restore(schedule).end_step
        return end_step is not None and 0 <= end_step <= self.updated_at

    @classmethod
    def _settled(cls) -> tuple[str, ...]:
        return cls._fields[2:]


class Ended(NamedTuple):
    """Where a schedule ended in an earlier training: after how many steps, at what sparsity.

    Attributes:
        progress: its origin is the steps.
        sparsity: of the masks.
    """

    progress: Progress
    sparsity: float


class Reached(NamedTuple):
    """What a pruning had come to when it was released."""

    finished: bool
    step: int
    sparsity: float
