"""TFMOT's schedules. Its steps begin at 1: step t comes after t - 1 updates of the weights."""

import abc
import dataclasses
from typing import Any, SupportsFloat

import keras

from keras_pruner import schedules
from keras_pruner.validation import check_integer, check_sparsity, value


class PruningSchedule(abc.ABC):
    """The steps that prune, and the sparsity at each; TFMOT's interface for schedules.

    The first training batch is step 1. Subclasses written for TFMOT work as they are; they are
    registered with Keras when they are defined, so that they are saved and loaded with a model.

    Attributes:
        final_step: the last step that changes the masks; it always prunes. None: not known.

    Example:
        >>> import keras_pruner.tfmot as tfmot
        >>> class Stairs(tfmot.sparsity.keras.PruningSchedule):
        ...     def __call__(self, step):
        ...         return step % 100 == 0, min(0.9, 0.001 * step)
        ...
        ...     def get_config(self):
        ...         return {}
        >>> Stairs()(200)
        (True, 0.2)
    """

    final_step: int | None = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        keras.saving.register_keras_serializable(cls.__module__)(cls)

    @abc.abstractmethod
    def __call__(self, step: int) -> tuple[Any, Any]:
        """Return whether to prune at `step`, and the fraction of zeros then."""

    @abc.abstractmethod
    def get_config(self) -> dict[str, Any]:
        """Return the constructor arguments, or TFMOT's form of them with a class name."""

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "PruningSchedule":
        """Create the schedule from either form of configuration."""
        return cls(**(config["config"] if set(config) == {"class_name", "config"} else config))

    @staticmethod
    def _validate_step(
        begin_step: int, end_step: int, frequency: int, allow_negative_1: bool
    ) -> None:
        check_integer("begin_step", begin_step, least=0)
        if not (allow_negative_1 and end_step == -1):
            check_integer("end_step", end_step, least=begin_step)
        check_integer("frequency", frequency, least=1)

    @staticmethod
    def _validate_sparsity(sparsity: float, variable_name: str) -> None:
        check_sparsity(variable_name, sparsity)

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
    """A schedule that takes its sparsities and its checks from a schedule of this library."""

    def __post_init__(self) -> None:
        for name in (field.name for field in dataclasses.fields(self)):
            given = getattr(self, name)
            if given is None:
                raise ValueError(
                    f"`{name}` must be a number in a schedule of TFMOT. Received: {name}=None. "
                    "The schedules of kp.schedules take it from the length of the training."
                )
            # The guides compute steps with NumPy, whose numbers JSON cannot hold.
            if isinstance(given, SupportsFloat) and not isinstance(given, bool):
                number = float(given)
                setattr(self, name, int(number) if number.is_integer() else number)
        self._native = self.native()

    @abc.abstractmethod
    def native(self) -> schedules.Schedule:
        """Return the schedule of this library with the same sparsities, which checks them."""

    def __call__(self, step: int) -> tuple[bool, float]:
        """Return whether to prune at `step`, and the sparsity; constant outside the schedule."""
        span: Any = self
        due = self._should_prune_in_step(step, span.begin_step, span.end_step, span.frequency)
        return due, self._native.sparsity_at(step)

    def get_config(self) -> dict[str, Any]:
        """Return the class name and the arguments, as TFMOT does."""
        return {"class_name": type(self).__name__, "config": dataclasses.asdict(self)}


@dataclasses.dataclass(eq=False)
class ConstantSparsity(_OverNative):
    """The same sparsity from `begin_step` on.

    Args:
        target_sparsity: fraction of zeros, in [0, 1).
        begin_step: first step that prunes; the first training batch is step 1.
        end_step: last step that prunes. -1: none.
        frequency: steps between updates of the masks.

    Example:
        >>> import keras_pruner.tfmot as tfmot
        >>> tfmot.sparsity.keras.ConstantSparsity(0.5, begin_step=0)(100)
        (True, 0.5)
    """

    target_sparsity: float
    begin_step: int
    end_step: int = -1
    frequency: int = 100

    @property
    def final_step(self) -> int:  # type: ignore[override]
        """`begin_step`: later updates add no zeros."""
        return self.begin_step

    def native(self) -> schedules.ConstantSparsity:
        """Return the same schedule, without an end if `end_step` is -1."""
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
        begin_step: first step that prunes; the first training batch is step 1.
        end_step: last step that prunes; it always prunes.
        power: exponent; the paper uses 3.
        frequency: steps between updates of the masks.

    Example:
        >>> import keras_pruner.tfmot as tfmot
        >>> schedule = tfmot.sparsity.keras.PolynomialDecay(0.2, 0.8, 100, 110, frequency=1)
        >>> schedule(110)
        (True, 0.8)
    """

    initial_sparsity: float
    final_sparsity: float
    begin_step: int
    end_step: int
    power: float = 3
    frequency: int = 100

    @property
    def final_step(self) -> int:  # type: ignore[override]
        """`end_step`: the sparsity rises until then."""
        return self.end_step

    def native(self) -> schedules.PolynomialDecay:
        """Return the same schedule, whose arguments have another order."""
        return schedules.PolynomialDecay(**dataclasses.asdict(self))


@value
class Steps(schedules.Schedule):
    """A TFMOT schedule as a schedule of this library, whose steps begin at 0.

    Args:
        schedule: a `PruningSchedule`.
        done: steps completed before this count began, with another optimizer.
    """

    schedule: PruningSchedule
    done: int = 0

    frequency = None

    @property
    def begin_step(self) -> int:  # type: ignore[override]
        """The first step that may prune. TFMOT's step 0 does not exist; its update comes at 1."""
        return max(0, getattr(self.schedule, "begin_step", 1) - 1 - self.done)

    @property
    def end_step(self) -> int | None:  # type: ignore[override]
        """The last step that changes the masks; None if it is not known."""
        final = self.schedule.final_step
        return None if final is None else max(0, final - 1 - self.done)

    def updates_at(self, step: int) -> bool:
        """Return whether the schedule prunes at this step; at its end it does."""
        theirs = self._theirs(step)
        asked = bool(self.schedule(theirs)[0])
        if theirs == 1 and isinstance(self.schedule, _OverNative):
            asked = asked or self.schedule(0)[0]  # a user's own is never called with step 0
        return asked or step == self.end_step

    def sparsity_at(self, step: int) -> float:
        """Return the sparsity at a step, checked."""
        theirs = self._theirs(step)
        sparsity = float(self.schedule(theirs)[1])
        check_sparsity(f"{type(self.schedule).__name__}({theirs})[1]", sparsity)
        return sparsity

    def _theirs(self, step: int) -> int:
        """TFMOT's number of a step."""
        return self.done + step + 1

    def resolve(self, steps: int | None, sparsity: float) -> "Steps":
        """Return the schedule itself: it leaves nothing to be resolved."""
        del steps, sparsity
        return self
