"""When masks are updated, and the sparsity at that step.

A step is an applied optimizer update, counted from the beginning of the schedule. Pure Python.
"""

import abc
import dataclasses
import math
import numbers
from collections.abc import Callable, Sequence
from typing import Any, SupportsFloat

from keras_pruner.validation import check_integer, check_sparsity, value

__all__ = [
    "ConstantSparsity",
    "FunctionSchedule",
    "PolynomialDecay",
    "Schedule",
]

SHARE_OF_TRAINING = 0.75
"""The part of training over which a schedule without an end prunes; then the model recovers."""

STEPS_TO_RECOVER = 50
"""The least number of steps that such a schedule leaves at its end.

A training of fewer steps prunes all at once, which loses less than pruning gradually, and is warned
of: it recovers little (benchmarks/short_trainings.py).
"""

UPDATES_PER_SPAN = 100
"""The number of mask updates of a schedule without a frequency."""

LAST_STEP = 2**31 - 1
"""The highest step: checkpoints hold it as a 32-bit integer."""


class Schedule(abc.ABC):
    """When masks are updated, and to which sparsity. Subclass it for a schedule of your own.

    A subclass has the three attributes below and defines `sparsity_at`. To have it saved in
    checkpoints, make it a frozen dataclass with `get_config`, registered with
    `keras.saving.register_keras_serializable`. `kp.testing.check_schedule` checks its laws.

    Attributes:
        begin_step: the step of the first mask update.
        end_step: the step of the last one, where the sparsity is final. None: set by the training.
        frequency: steps between updates. None: a hundred updates over the span.

    Example:
        >>> class Linear(Schedule):
        ...     begin_step, end_step, frequency = 0, 10, 5
        ...
        ...     def sparsity_at(self, step):
        ...         return 0.8 * min(1.0, step / 10)
        >>> [step for step in range(20) if Linear().updates_at(step)], Linear().sparsity_at_end
        ([0, 5, 10], 0.8)
    """

    begin_step: int
    end_step: int | None
    frequency: int | None

    @abc.abstractmethod
    def sparsity_at(self, step: int) -> float:
        """The fraction of zeros at `step` (a Python int), in [0, 1)."""

    @property
    def sparsity_at_end(self) -> float | None:
        """The final sparsity; None if the end is open."""
        return None if self.end_step is None else self.sparsity_at(self.end_step)

    def updates_at(self, step: int) -> bool:
        """Whether the masks are updated after `step` completed updates of the weights.

        True at `begin_step`, every `frequency` steps after it, and at `end_step`.
        """
        end = math.inf if self.end_step is None else self.end_step
        if not self.begin_step <= step <= end:
            return False
        since = step - self.begin_step
        return step == end or since == 0 or since % self._interval() == 0

    def resolve(self, steps: int | None, sparsity: float) -> "Schedule":
        """The same schedule with every open field set.

        Args:
            steps: the number of weight updates of the training; None if it is unknown.
            sparsity: the present fraction of zeros of the model.

        Raises:
            ValueError: if the end is open and the length of the training unknown.
        """
        del sparsity
        if self.end_step is not None:
            return self
        if not dataclasses.is_dataclass(self):
            raise ValueError(
                f"`end_step` is None in a schedule that is no dataclass, so that it cannot be set. "
                f"Received: {type(self).__name__}. Set `end_step`, or decorate the class with "
                "@dataclasses.dataclass(frozen=True)."
            )
        # The caller refuses a training that ends before the schedule begins.
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
                "A schedule without `end_step` ends with the training, and the length of this one "
                f"is unknown. Received: schedule={self!r}. Pass `steps_per_epoch` to `fit`, or "
                "`updates=2000` to `kp.Pruner`; or give the schedule an end: "
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
                f"`begin_step`, `end_step` and `frequency` must be at most {LAST_STEP:,}. "
                f"Received: begin_step={self.begin_step}, end_step={self.end_step}, "
                f"frequency={self.frequency}. Leave `end_step` out to end with the training."
            )


_TFMOT_ORDER = (
    "initial_sparsity",
    "final_sparsity",
    "begin_step",
    "end_step",
    "power",
    "frequency",
)


def _check_named(cls: type, names: Sequence[str], values: Sequence[object]) -> None:
    """Raise if more than one value was given without its name."""
    if len(values) > 1:
        named = ", ".join(f"{name}={value!r}" for name, value in zip(names, values, strict=False))
        order = " (the order of TensorFlow Model Optimization)" if names is _TFMOT_ORDER else ""
        raise TypeError(
            f"{cls.__name__} takes one argument without its name. Received: "
            f"{', '.join(map(repr, values))}. Name the others: {cls.__name__}({named}){order}."
        )


@value
class ConstantSparsity(Schedule):
    """The same sparsity from `begin_step` on.

    The masks found at `begin_step` stay: further updates at the same sparsity change nothing.

    Args:
        sparsity: fraction of weights set to zero, in [0, 1).
        begin_step: the step at which the weights are pruned.
        end_step: the last update. None: `begin_step`, since one update is enough.
        frequency: steps between updates. None: a hundred updates over the span.

    Raises:
        ValueError: for a sparsity outside [0, 1), an end before the beginning, or a frequency
            below 1.
        TypeError: if other arguments than `sparsity` are given without their names.

    Example:
        >>> ConstantSparsity(0.5, begin_step=10).sparsity_at(10)
        0.5
    """

    sparsity: float
    begin_step: int = dataclasses.field(default=0, kw_only=True)
    end_step: int | None = dataclasses.field(default=None, kw_only=True)
    frequency: int | None = dataclasses.field(default=None, kw_only=True)

    def __new__(cls, *values: Any, **_: Any) -> "ConstantSparsity":
        """Refuse steps without their names."""
        _check_named(cls, ("sparsity", "begin_step", "end_step", "frequency"), values)
        return super().__new__(cls)

    def __post_init__(self) -> None:
        check_sparsity("sparsity", self.sparsity)
        self._check_steps()

    @property
    def sparsity_at_end(self) -> float:
        """The same as `sparsity`."""
        return self.sparsity

    def sparsity_at(self, step: int) -> float:
        """The same as `sparsity`, at every step."""
        del step
        return self.sparsity

    def resolve(self, steps: int | None, sparsity: float) -> "ConstantSparsity":
        """Set `end_step` to `begin_step` if it is open."""
        del steps, sparsity
        end_step = self.begin_step if self.end_step is None else self.end_step
        return dataclasses.replace(self, end_step=end_step)


@value
class PolynomialDecay(Schedule):
    """Sparsity that rises fast at first, then slower and slower.

    s(t) = s_f + (s_i - s_f) (1 - (t - t_0) / (t_1 - t_0))^power within [t_0, t_1]
    (Zhu & Gupta 2017, arXiv:1710.01878, eq. 1, where power = 3).

    Args:
        final_sparsity: s_f, fraction of weights set to zero at the end, in [0, 1).
        initial_sparsity: s_i, the fraction at `begin_step`. None: the model's sparsity then.
        begin_step: t_0, the step of the first mask update.
        end_step: t_1, the step of the last one. None: after three quarters of the training,
            earlier in a training of fewer than 200 steps, so that 50 are left to recover; one of
            up to 50 prunes all at once.
        power: 1 is linear, 3 is the paper's.
        frequency: steps between updates. None: a hundred updates over the span.

    Raises:
        ValueError: for sparsities outside [0, 1), an end before the beginning, or a power or
            frequency that is not positive.
        TypeError: if other arguments than `final_sparsity` are given without their names.

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

    def __new__(cls, *values: Any, **_: Any) -> "PolynomialDecay":
        """Refuse steps without their names."""
        _check_named(cls, _TFMOT_ORDER if len(values) > 1 else ("final_sparsity",), values)
        return super().__new__(cls)

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
        """The same as `final_sparsity`."""
        return self.final_sparsity

    def sparsity_at(self, step: int) -> float:
        """Equation 1 of the paper; constant before `begin_step` and after `end_step`."""
        if self.end_step is None or step >= self.end_step:
            return self.final_sparsity
        initial = self.initial_sparsity or 0.0
        if step <= self.begin_step:
            return initial
        elapsed = (step - self.begin_step) / (self.end_step - self.begin_step)
        return self.final_sparsity + (initial - self.final_sparsity) * (1 - elapsed) ** self.power

    def resolve(self, steps: int | None, sparsity: float) -> "PolynomialDecay":
        """Set an open beginning to the model's sparsity, an open end by the training's length."""
        changes: dict[str, Any] = {}
        if self.end_step is None:
            length = self._known(steps) - self.begin_step
            span = min(math.ceil(SHARE_OF_TRAINING * length), length - STEPS_TO_RECOVER)
            changes["end_step"] = self.begin_step + max(0, span)
        if self.initial_sparsity is None:
            changes["initial_sparsity"] = min(sparsity, self.final_sparsity)
        return dataclasses.replace(self, **changes)


@value
class FunctionSchedule(Schedule):
    """A schedule from a plain function step -> sparsity.

    The masks are updated whenever the function returns another sparsity than at the step before.
    A function that changes at every step updates them at every step, which is slow: let it move
    in stairs, or pass a `frequency`.

    Args:
        function: step (a Python int) -> fraction of zeros, in [0, 1).
        begin_step: the first step at which the function is called.
        end_step: the last one. None: the end of the training.
        frequency: steps between calls.

    Raises:
        ValueError: if `function` is no function, or returns no fraction in [0, 1).
        TypeError: if other arguments than `function` are given without their names.

    Example:
        >>> stairs = FunctionSchedule(lambda step: 0.5 if step < 1000 else 0.8)
        >>> stairs.sparsity_at(999), stairs.sparsity_at(1000)
        (0.5, 0.8)
    """

    function: Callable[[int], float]
    begin_step: int = dataclasses.field(default=0, kw_only=True)
    end_step: int | None = dataclasses.field(default=None, kw_only=True)
    frequency: int = dataclasses.field(default=1, kw_only=True)

    def __new__(cls, *values: Any, **_: Any) -> "FunctionSchedule":
        """Refuse steps without their names."""
        _check_named(cls, ("function", "begin_step", "end_step", "frequency"), values)
        return super().__new__(cls)

    def __post_init__(self) -> None:
        if not callable(self.function):
            raise ValueError(
                "`function` must be a function from a step to a sparsity. "
                f"Received: function={self.function!r}. For a constant sparsity pass "
                "kp.ConstantSparsity(0.5)."
            )
        self._check_steps()

    def sparsity_at(self, step: int) -> float:
        """The sparsity that the function returns."""
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


def depends_on_length(schedule: Schedule) -> bool:
    """Whether the end of a schedule is open, and set by the length of the training."""
    if schedule.end_step is not None or not dataclasses.is_dataclass(schedule):
        return False
    lengths = (schedule.begin_step + n for n in (100, 1000))
    return len({schedule.resolve(length, 0.0).end_step for length in lengths}) > 1
