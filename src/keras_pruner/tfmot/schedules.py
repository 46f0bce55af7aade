"""TFMOT's schedules: when to prune, and how much, in its steps, which begin at 1."""

import abc
import dataclasses
from typing import Any, SupportsFloat

import keras

from keras_pruner import schedules
from keras_pruner.validation import check_sparsity, value


class PruningSchedule(abc.ABC):
    """When to prune and how much. Subclasses written for TFMOT work as they are.

    The first training batch is step 1. Subclasses are registered with Keras when they are
    defined, so that they are saved and loaded along with a model.

    Attributes:
        final_step: the step that brings the last change, always an update. None: not known.
    """

    final_step: int | None = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        keras.saving.register_keras_serializable(cls.__module__)(cls)

    @abc.abstractmethod
    def __call__(self, step: int) -> tuple[Any, Any]:
        """Whether to prune at `step`, and the fraction of zeros to prune to."""

    @abc.abstractmethod
    def get_config(self) -> dict[str, Any]:
        """The arguments to make the schedule again; or TFMOT's form, which has a class name."""

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "PruningSchedule":
        """Make the schedule again, from either form of configuration."""
        return cls(**(config["config"] if set(config) == {"class_name", "config"} else config))

    def _should_prune_in_step(
        self, step: int, begin_step: int, end_step: int, frequency: int
    ) -> bool:
        ended = 0 <= end_step < step
        return step >= begin_step and not ended and (step - begin_step) % frequency == 0

    def __eq__(self, other: object) -> bool:
        if self is other or type(self) is not type(other):
            return self is other
        config = self.get_config()  # a user's may give none
        return config is not None and config == other.get_config()

    def __hash__(self) -> int:
        return hash(type(self))


@dataclasses.dataclass(eq=False)
class _OverNative(PruningSchedule):
    """A schedule that takes its sparsities, and its checks, from one of this library's."""

    def __post_init__(self) -> None:
        for name, given in vars(self).items():
            if given is None:
                raise ValueError(
                    f"`{name}` must be a number: these schedules leave nothing open. Received: "
                    f"{name}=None. For what is settled by the training use those of kp."
                )
            # The guides compute steps with NumPy, whose numbers no JSON takes.
            if isinstance(given, SupportsFloat) and not isinstance(given, bool):
                number = float(given)
                setattr(self, name, int(number) if number.is_integer() else number)
        self._native = self.native()

    @abc.abstractmethod
    def native(self) -> schedules.Schedule:
        """The schedule of this library with the same sparsities; making it checks them."""

    def __call__(self, step: int) -> tuple[bool, float]:
        """Whether `step` prunes, and the sparsity then; held at its ends outside of them."""
        span: Any = self
        due = self._should_prune_in_step(step, span.begin_step, span.end_step, span.frequency)
        return due, self._native.sparsity_at(step)

    def get_config(self) -> dict[str, Any]:
        """In TFMOT's form."""
        return {"class_name": type(self).__name__, "config": dataclasses.asdict(self)}


@dataclasses.dataclass(eq=False)
class ConstantSparsity(_OverNative):
    """The same sparsity from `begin_step` on.

    Args:
        target_sparsity: fraction of zeros, in [0, 1).
        begin_step: the first step that prunes.
        end_step: the last one; -1: none.
        frequency: steps between updates.
    """

    target_sparsity: float
    begin_step: int
    end_step: int = -1
    frequency: int = 100

    @property
    def final_step(self) -> int:  # type: ignore[override]
        """The first one: more zeros do not come later."""
        return self.begin_step

    def native(self) -> schedules.ConstantSparsity:
        """The same, with no end for an end of -1."""
        check_sparsity("target_sparsity", self.target_sparsity)
        steps = {"begin_step": self.begin_step, "frequency": self.frequency}
        end_step = None if self.end_step == -1 else self.end_step
        return schedules.ConstantSparsity(self.target_sparsity, end_step=end_step, **steps)


@dataclasses.dataclass(eq=False)
class PolynomialDecay(_OverNative):
    """Sparsity that rises fast at first (Zhu & Gupta 2017, arXiv:1710.01878, eq. 1).

    Args:
        initial_sparsity: fraction of zeros at `begin_step`, in [0, 1).
        final_sparsity: fraction of zeros at `end_step`, in [0, 1).
        begin_step: the first step that prunes.
        end_step: the last one; it always prunes.
        power: 3 is the paper's.
        frequency: steps between updates.
    """

    initial_sparsity: float
    final_sparsity: float
    begin_step: int
    end_step: int
    power: float = 3
    frequency: int = 100

    @property
    def final_step(self) -> int:  # type: ignore[override]
        """`end_step`."""
        return self.end_step

    def native(self) -> schedules.PolynomialDecay:
        """The same: only the order of the arguments differs."""
        return schedules.PolynomialDecay(**dataclasses.asdict(self))


@value
class Steps(schedules.Schedule):
    """A TFMOT schedule in this library's count: its step t comes when t - 1 updates are done.

    Args:
        schedule: TFMOT's, or a user's subclass.
        done: steps that were made before this count began, under another optimizer.
    """

    schedule: PruningSchedule
    done: int = 0

    frequency = None

    @property
    def begin_step(self) -> int:  # type: ignore[override]
        """The first step that may prune; a step 0 never comes, so what it asks for comes at 1."""
        return max(0, getattr(self.schedule, "begin_step", 1) - 1 - self.done)

    @property
    def end_step(self) -> int | None:  # type: ignore[override]
        """The last step that changes anything; None if nobody knows."""
        final = self.schedule.final_step
        return None if final is None else max(0, final - 1 - self.done)

    def updates_at(self, step: int) -> bool:
        """As the schedule says; and at its end."""
        theirs = self._theirs(step)
        asked = bool(self.schedule(theirs)[0])
        if theirs == 1 and isinstance(self.schedule, _OverNative):
            asked = asked or self.schedule(0)[0]  # a user's own never hears of step 0
        return asked or step == self.end_step

    def sparsity_at(self, step: int) -> float:
        """As the schedule says; checked."""
        theirs = self._theirs(step)
        sparsity = float(self.schedule(theirs)[1])
        check_sparsity(f"{type(self.schedule).__name__}({theirs})[1]", sparsity)
        return sparsity

    def _theirs(self, step: int) -> int:
        """A step in TFMOT's count."""
        return self.done + step + 1

    def resolve(self, steps: int | None, sparsity: float) -> "Steps":
        """Itself: nothing is open."""
        del steps, sparsity
        return self
