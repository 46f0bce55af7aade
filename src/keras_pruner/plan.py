"""The plan: what is pruned in a model, and why everything else is left alone."""

import dataclasses
from collections.abc import Callable

import keras
import numpy as np

from keras_pruner.allocations import Allocation, PerWeight
from keras_pruner.model_weights import WeightView
from keras_pruner.patterns import Channel, Pattern
from keras_pruner.reporting.report import Report
from keras_pruner.reporting.tables import Table
from keras_pruner.validation import value

Criterion = Callable[[np.ndarray], np.ndarray]


@value
class Target:
    """One prunable variable of a model.

    Attributes:
        path: its name in the model, unique within a plan.
        view: its shape, and the meaning of its axes.
        pattern: the zeros allowed in it.
        sparsity: its own final fraction of zeros; None if it shares the overall budget.
        index: its position among the model's trainable variables; None if it is frozen.
    """

    path: str
    view: WeightView
    pattern: Pattern
    sparsity: float | None = None
    index: int | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the variable."""
        return self.view.shape

    @property
    def units(self) -> int:
        """How many weights, blocks or channels the pattern sees in it."""
        return self.pattern.units(self.view.kernel_shape)


@value
class Member:
    """The part of one target in a group: which of its entries belong to which unit.

    Attributes:
        path: of the target.
        axis: of the variable along which the units lie.
        units: the unit of each index along the axis; -1 for none. Shorter than the axis, they
            come again and again, as where a Dense layer reads a flattened image.
        repeat: for how many consecutive indices each of them stands.
        follows: whether the target has no part in the scores, as biases, the scales and
            statistics of a normalization, and kernels that only read the units.
    """

    path: str
    axis: int
    units: tuple[int, ...]
    repeat: int = 1
    follows: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "units", tuple(map(int, self.units)))

    def unit_of(self, size: int) -> np.ndarray:
        """The unit of each of `size` indices along the axis; -1 for none."""
        return np.resize(np.repeat(self.units, self.repeat), size)


@value
class Group:
    """Tied weights, for which one decision is made: which units stay in all of them.

    Attributes:
        path: the name of the group; its share of the budget goes by it.
        members: its targets.
        units: how many units there are, such as the channels that an addition ties.
        pattern: how the scores of a unit are pooled.
        sparsity: its own final fraction of zeros; None if it shares the overall budget.
    """

    path: str
    members: tuple[Member, ...]
    units: int
    pattern: Channel = Channel()
    sparsity: float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "members", tuple(self.members))


@dataclasses.dataclass(frozen=True)
class Skip:
    """A variable that is left alone, and why."""

    path: str
    shape: tuple[int, ...]
    reason: str


@dataclasses.dataclass(frozen=True)
class Plan(Report):
    """The targets of a model and the reasons for all other variables; prints as a table.

    Attributes:
        targets: what is pruned.
        skipped: what is not, with its reason.
        variables: the `keras.Variable` of each target.
        allocation: how the targets without a sparsity of their own share the overall budget.
        criterion: weights -> scores.
        groups: tied weights; every other target is a group of one.
    """

    targets: tuple[Target, ...]
    skipped: tuple[Skip, ...]
    variables: tuple[keras.Variable, ...] = dataclasses.field(repr=False, compare=False)
    allocation: Allocation
    criterion: Criterion
    groups: tuple[Group, ...] = ()

    @property
    def decided(self) -> list[Target | Group]:
        """What one decision covers: the groups, and the targets that are in none."""
        tied = {member.path for group in self.groups for member in group.members}
        return [*(t for t in self.targets if t.path not in tied), *self.groups]

    def headline(self) -> str:
        """The number of weights that are pruned and that are left alone."""
        return f"plan: {len(self.targets)} weights are pruned, {len(self.skipped)} left alone"

    def tables(self) -> list[Table]:
        """The targets, then the variables left alone with the reasons."""
        targets = [
            (t.path, t.shape, t.pattern, "shared budget" if t.sparsity is None else t.sparsity)
            for t in self.targets
        ]
        left = [(skip.path, skip.shape, skip.reason) for skip in self.skipped]
        return [
            Table("", ["weight", "shape", "pattern", "sparsity"], targets),
            Table("left alone", ["weight", "shape", "reason"], left),
        ]

    def check_final(self, sparsity: float | None) -> None:
        """Raise if a mapping given as `allocation` does not come to the final sparsity."""
        if not isinstance(self.allocation, PerWeight) or sparsity is None:
            return
        shared: dict[Pattern, dict[str, int]] = {}
        for each in self.decided:
            if each.sparsity is None:
                shared.setdefault(each.pattern, {})[each.path] = each.units
        for pattern, units in shared.items():
            self.allocation.check_final(units, sparsity, pattern if len(shared) > 1 else None)

    def same_as(self, other: "Plan") -> bool:
        """Whether masks made for one plan serve the other; names may differ after loading."""
        return self._nameless() == other._nameless()

    def _nameless(self) -> tuple[object, ...]:
        place = {target.path: str(i) for i, target in enumerate(self.targets)}
        targets = [dataclasses.replace(target, path="") for target in self.targets]
        groups = [
            dataclasses.replace(
                group,
                path="",
                members=tuple(dataclasses.replace(m, path=place[m.path]) for m in group.members),
            )
            for group in self.groups
        ]
        return targets, groups, self.allocation, self.criterion
