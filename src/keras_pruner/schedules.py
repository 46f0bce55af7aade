"""When masks are updated, and the sparsity at that step.

A step is an applied optimizer update, counted from the beginning of the schedule. Pure Python.
"""

import abc
import dataclasses
import math
import numbers
from collections.abc import Callable
from typing import Any, SupportsFloat

from keras_pruner.validation import check_integer, check_sparsity, value

__all__ = [
    "ConstantSparsity",
    "FunctionSchedule",
    "PolynomialDecay",
    "Schedule",
]

SHARE_OF_TRAINING = 0.75
"""The part of training over which a schedule without an end prunes; the rest is to recover."""

UPDATES_PER_SPAN = 100
"""How many mask updates a schedule without a frequency makes between its two ends."""

LAST_STEP = 2**31 - 1
"""As far as a checkpoint counts, in 32 bits."""


class Schedule(abc.ABC):
    """When masks are updated, and to which sparsity. Subclass it for a schedule of your own.

    A subclass has the three attributes below and says what the sparsity is. Make it a frozen
    dataclass registered with `keras.saving.register_keras_serializable` to have it saved along.

    Attributes:
        begin_step: the first update of the masks.
        end_step: the last one, at which the sparsity is final. None: it is settled by the
            training that the schedule is part of.
        frequency: steps from one update to the next. None: a hundred updates over the span.
    """

    begin_step: int
    end_step: int | None
    frequency: int | None

    @abc.abstractmethod
    def sparsity_at(self, step: int) -> float:
        """The fraction of zeros due at `step`, a Python int; in [0, 1)."""

    @property
    def sparsity_at_end(self) -> float | None:
        """The final sparsity; None while it is not known."""
        return None if self.end_step is None else self.sparsity_at(self.end_step)

    def updates_at(self, step: int) -> bool:
        """Whether the masks are updated after `step` completed updates of the weights.

        They are at `begin_step`, every `frequency` steps after it, and always at `end_step`.
        """
        end = math.inf if self.end_step is None else self.end_step
        if not self.begin_step <= step <= end:
            return False
        since = step - self.begin_step
        return step == end or since == 0 or since % self._interval() == 0

    def resolve(self, steps: int | None, sparsity: float) -> "Schedule":
        """The same schedule with all that it leaves open settled.

        Args:
            steps: the updates of the training it is part of; None where nobody knows.
            sparsity: the fraction of zeros of the model at present.

        Raises:
            ValueError: if the end hangs on the length of a training of unknown length.
        """
        del sparsity
        if self.end_step is not None:
            return self
        if not dataclasses.is_dataclass(self):
            raise ValueError(
                f"{type(self).__name__} leaves its end open, and only a dataclass can be given "
                "one. Set `end_step`, or decorate the class with "
                "@dataclasses.dataclass(frozen=True)."
            )
        # A training that ends before the schedule begins is for the caller to refuse.
        end_step = max(self.begin_step, self._known(steps))
        return dataclasses.replace(self, end_step=end_step)

    def _interval(self) -> int:
        if self.frequency is not None:
            return self.frequency
        if self.end_step is None:
            return UPDATES_PER_SPAN
        return max(1, (self.end_step - self.begin_step) // UPDATES_PER_SPAN)

    def _known(self, steps: int | None) -> int:
        if steps is None:
            raise ValueError(
                "A schedule without `end_step` needs to know how long the training is, and this "
                f"one does not say. Received: schedule={self!r}. In `fit` pass `steps_per_epoch`, "
                "to `kp.Pruner` `updates=2000`; or give the schedule an end: "
                "`kp.PolynomialDecay(0.8, end_step=2000)`."
            )
        return steps

    def _check_steps(self) -> None:
        check_integer("begin_step", self.begin_step, least=0)
        if self.end_step is not None:
            check_integer("end_step", self.end_step, least=0)
            if self.end_step < self.begin_step:
                raise ValueError(
                    "`end_step` must not come before `begin_step`. Received: "
                    f"begin_step={self.begin_step}, end_step={self.end_step}."
                )
        if self.frequency is not None:
            check_integer("frequency", self.frequency, least=1)
        if max(self.begin_step, self.end_step or 0, self.frequency or 0) > LAST_STEP:
            raise ValueError(
                f"Steps are counted up to {LAST_STEP:,}. Received: begin_step={self.begin_step}, "
                f"end_step={self.end_step}, frequency={self.frequency}. Leave `end_step` out to "
                "end with the training."
            )


@value
class ConstantSparsity(Schedule):
    """The same sparsity from `begin_step` on.

    The masks found at `begin_step` stay: by the law of nesting an update at the same sparsity
    changes nothing.

    Args:
        sparsity: fraction of weights set to zero, in [0, 1).
        begin_step: the step at which the weights are pruned.
        end_step: the last update. None: `begin_step`, which is enough.
        frequency: steps between updates. None: a hundred updates over the span.

    Example:
        >>> ConstantSparsity(0.5, begin_step=10).sparsity_at(10)
        0.5
    """

    sparsity: float
    begin_step: int = dataclasses.field(default=0, kw_only=True)
    end_step: int | None = dataclasses.field(default=None, kw_only=True)
    frequency: int | None = dataclasses.field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        check_sparsity("sparsity", self.sparsity)
        self._check_steps()

    @property
    def sparsity_at_end(self) -> float:
        """`sparsity`."""
        return self.sparsity

    def sparsity_at(self, step: int) -> float:
        """`sparsity`, whatever the step."""
        del step
        return self.sparsity

    def resolve(self, steps: int | None, sparsity: float) -> "ConstantSparsity":
        """End where it began, unless told otherwise."""
        del steps, sparsity
        end_step = self.begin_step if self.end_step is None else self.end_step
        return dataclasses.replace(self, end_step=end_step)


@value
class PolynomialDecay(Schedule):
    """Sparsity that rises fast at first and then ever more slowly.

    s(t) = s_f + (s_i - s_f) (1 - (t - t_0) / (t_1 - t_0))^power within [t_0, t_1]
    (Zhu & Gupta 2017, arXiv:1710.01878, eq. 1, where power = 3).

    Args:
        final_sparsity: s_f, fraction of weights set to zero at the end, in [0, 1).
        initial_sparsity: s_i, the fraction at `begin_step`. None: what the model has then.
        begin_step: t_0, the first update of the masks.
        end_step: t_1, the last one. None: after three quarters of the training.
        power: 1 is linear, 3 is the paper's.
        frequency: steps between updates. None: a hundred updates over the span.

    Raises:
        ValueError: for sparsities outside [0, 1), an end before the beginning, a power or a
            frequency that is not positive.

    Example:
        >>> schedule = PolynomialDecay(
        ...     initial_sparsity=0.2, final_sparsity=0.8, begin_step=100, end_step=110
        ... )
        >>> [round(schedule.sparsity_at(t), 4) for t in (100, 102, 105, 110)]
        [0.2, 0.4928, 0.725, 0.8]
    """

    final_sparsity: float
    initial_sparsity: float | None = dataclasses.field(default=None, kw_only=True)
    begin_step: int = dataclasses.field(default=0, kw_only=True)
    end_step: int | None = dataclasses.field(default=None, kw_only=True)
    power: float = dataclasses.field(default=3, kw_only=True)
    frequency: int | None = dataclasses.field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        check_sparsity("final_sparsity", self.final_sparsity)
        if self.initial_sparsity is not None:
            check_sparsity("initial_sparsity", self.initial_sparsity)
        if not (isinstance(self.power, numbers.Real) and 0 < float(self.power) < math.inf):
            raise ValueError(
                f"`power` must be a positive number. Received: power={self.power!r}. 1 is linear, "
                "3 is the paper's."
            )
        self._check_steps()

    @property
    def sparsity_at_end(self) -> float:
        """`final_sparsity`."""
        return self.final_sparsity

    def sparsity_at(self, step: int) -> float:
        """The paper's equation 1, held at its two ends outside them."""
        if self.end_step is None or step >= self.end_step:
            return self.final_sparsity
        initial = self.initial_sparsity or 0.0
        if step <= self.begin_step:
            return initial
        elapsed = (step - self.begin_step) / (self.end_step - self.begin_step)
        return self.final_sparsity + (initial - self.final_sparsity) * (1 - elapsed) ** self.power

    def resolve(self, steps: int | None, sparsity: float) -> "PolynomialDecay":
        """Begin at the model's own sparsity, end after three quarters of the training."""
        changes: dict[str, Any] = {}
        if self.end_step is None:
            span = math.ceil(SHARE_OF_TRAINING * (self._known(steps) - self.begin_step))
            changes["end_step"] = self.begin_step + max(0, span)
        if self.initial_sparsity is None:
            changes["initial_sparsity"] = min(sparsity, self.final_sparsity)
        return dataclasses.replace(self, **changes)


@value
class FunctionSchedule(Schedule):
    """A plain function from step to sparsity as a schedule.

    The masks are updated wherever its value asks for other counts than the step before; a
    function that moves a little at every step therefore updates them at every step, which costs:
    let it move in stairs, or give a `frequency`.

    Args:
        function: step (a Python int) -> fraction of zeros, in [0, 1).
        begin_step: the first step at which it is asked.
        end_step: the last one. None: the end of the training.
        frequency: steps from one question to the next.

    Example:
        >>> stairs = FunctionSchedule(lambda step: 0.5 if step < 1000 else 0.8)
        >>> stairs.sparsity_at(999), stairs.sparsity_at(1000)
        (0.5, 0.8)
    """

    function: Callable[[int], float]
    begin_step: int = dataclasses.field(default=0, kw_only=True)
    end_step: int | None = dataclasses.field(default=None, kw_only=True)
    frequency: int = dataclasses.field(default=1, kw_only=True)

    def __post_init__(self) -> None:
        if not callable(self.function):
            raise ValueError(
                "`function` must take a step and return a sparsity. "
                f"Received: function={self.function!r}."
            )
        self._check_steps()

    def sparsity_at(self, step: int) -> float:
        """What the function says, checked."""
        given: object = self.function(step)  # arrays of one number have a __float__ as well
        sparsity = float(given) if isinstance(given, SupportsFloat) else given
        check_sparsity(f"schedule({step})", sparsity)
        return sparsity  # type: ignore[return-value]


def as_schedule(schedule: object) -> Schedule:
    """A schedule from a schedule, a final sparsity, or a function step -> sparsity."""
    if isinstance(schedule, Schedule):
        return schedule
    if callable(schedule) and not isinstance(schedule, type):
        return FunctionSchedule(schedule)
    check_sparsity("schedule", schedule)
    return PolynomialDecay(float(schedule))  # type: ignore[arg-type]
