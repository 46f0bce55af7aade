"""The plan: what is pruned in a model, and why everything else is left alone."""

import dataclasses
import math
from collections.abc import Callable, Sequence

import keras
import numpy as np

from keras_pruner.allocations import Allocation, PerWeight
from keras_pruner.model_weights import WeightView
from keras_pruner.patterns import Channel, FixedPattern, Pattern, Unstructured
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
        """The number of units of the pattern in it: single weights, blocks or channels."""
        return self.pattern.units(self.view.kernel_shape)


@value
class Member:
    """The part of one target in a group: which of its entries belong to which unit.

    Attributes:
        path: of the target.
        axis: the index of the axis with one entry, or slice, for each unit.
        units: the unit of each index along the axis; -1 for none. If they are fewer than the
            indices, they are repeated from the first.
        repeat: the number of consecutive indices that each of `units` stands for.
        follows: whether the target has no part in the scores, such as a bias, the scale of a
            normalization, or a kernel that only reads the units.

    Example:
        The rows of a Dense kernel that reads a flattened 2 by 1 image of three channels:

        >>> Member("dense/kernel", axis=0, units=(0, 1, 2)).unit_of(6)
        array([0, 1, 2, 0, 1, 2])

        The columns of a projection to two heads of size 3:

        >>> Member("query/kernel", axis=1, units=(0, 1), repeat=3).unit_of(6)
        array([0, 0, 0, 1, 1, 1])
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
        path: the name of the group, under which it shares the budget.
        members: its targets.
        units: the number of units, such as the channels that an addition ties.
        pattern: how the scores of a unit are pooled.
        sparsity: its own final fraction of zeros; None if it shares the overall budget.

    Example:
        The channels of a convolution: a column of its kernel and the bias of that column are
        pruned together, by the scores of the kernel.

        >>> import keras_pruner as kp
        >>> image = keras.Input((8, 8, 3))
        >>> x = keras.layers.Conv2D(4, 3, name="conv")(image)
        >>> x = keras.layers.Dense(2, name="head")(keras.layers.Flatten()(x))
        >>> (group,) = kp.plan(keras.Model(image, x), pattern=kp.Channel()).groups
        >>> group.path, group.units
        ('conv', 4)
        >>> [(member.path, member.axis, member.follows) for member in group.members]
        [('conv/bias', 0, True), ('conv/kernel', 3, False)]
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
    """A variable that is left alone, and why.

    Attributes:
        path: its name in the model.
        shape: of the variable.
        reason: why it is left alone.
        fix: how to have it pruned; empty if it is left alone by default or as the user asked.
    """

    path: str
    shape: tuple[int, ...]
    reason: str
    fix: str = ""


NOTABLE = 0.01
"""The share of the prunable weights from which a note says that they are left alone."""

TOLERANCE = 0.005
"""The difference to the requested sparsity up to which there is no note; less above 95% zeros."""


@dataclasses.dataclass(frozen=True)
class Plan(Report):
    """The targets of a model and the reasons for all other variables; prints as a table.

    Attributes:
        targets: the variables that are pruned.
        skipped: the variables that are left alone, with the reasons.
        variables: the `keras.Variable` of each target.
        allocation: how the targets without a sparsity of their own share the overall budget.
        criterion: kernel -> scores.
        groups: tied weights; every other target is a group of one.
        sparsity: the requested overall fraction of zeros; None if none was given.
        kept: the number of entries of each target that stay at `sparsity`; None without it.
        others: the `keras.Variable` of each skipped one that could be pruned.

    Example:
        >>> import keras_pruner as kp
        >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4, name="dense")])
        >>> plan = kp.plan(model)
        >>> [target.path for target in plan.targets], plan.skipped[0].reason
        (['dense/kernel'], 'a vector, not a kernel')
    """

    targets: tuple[Target, ...]
    skipped: tuple[Skip, ...]
    variables: tuple[keras.Variable, ...] = dataclasses.field(repr=False, compare=False)
    allocation: Allocation
    criterion: Criterion
    groups: tuple[Group, ...] = ()
    sparsity: float | None = None
    kept: tuple[int, ...] | None = None
    others: tuple[keras.Variable, ...] = dataclasses.field(default=(), repr=False, compare=False)

    def decided(self) -> list[Target | Group]:
        """What is decided on as one: the targets that are in no group, then the groups."""
        tied = self._tied_paths()
        return [*(t for t in self.targets if t.path not in tied), *self.groups]

    def _tied_paths(self) -> set[str]:
        """The paths of the targets that are in a group."""
        return {member.path for group in self.groups for member in group.members}

    # ------------------------------------------------------------------ what is shown

    def headline(self) -> str:
        """The number of weights that are pruned and left alone, and the sparsity if it is known."""
        text = f"plan: {len(self.targets)} weights are pruned, {len(self.skipped)} left alone"
        if self.kept is not None:
            reached = 1 - sum(self.kept) / sum(math.prod(t.shape) for t in self.targets)
            text += f"; overall sparsity {reached:.4f}"
        return text

    def tables(self) -> list[Table]:
        """The targets, then the variables left alone with the reasons."""
        left = [(skip.path, skip.shape, skip.reason) for skip in self.skipped]
        targets = [
            (t.path, t.shape, t.pattern, zeros)
            for t, zeros in zip(self.targets, self._sparsities(), strict=True)
        ]
        return [
            Table("", ["weight", "shape", "pattern", ">sparsity"], targets),
            Table("left alone", ["weight", "shape", "reason"], left),
        ]

    def _sparsities(self) -> list[str]:
        if self.kept is not None:
            pairs = zip(self.targets, self.kept, strict=True)
            return [f"{1 - kept / math.prod(target.shape):.4f}" for target, kept in pairs]
        return [
            "shared budget" if target.sparsity is None else f"{target.sparsity:g}"
            for target in self.targets
        ]

    def notes(self) -> list[str]:
        """What is left alone, which sparsity is not met, and which zeros bring little."""
        found = [self.left_alone()]
        if self.kept is not None and self.sparsity is not None:
            found += [self.unmet(self.sparsity, self.kept), self.wasted(self.kept)]
        return [note for note in found if note]

    @property
    def coverage(self) -> float:
        """The targets' share of all weights that could be pruned."""
        left = sum(math.prod(skip.shape) for skip in self.skipped if skip.fix)
        pruned = sum(math.prod(target.shape) for target in self.targets)
        return pruned / max(1, pruned + left)

    def left_alone(self) -> str:
        """The share of the prunable weights that is left alone, why, and how to prune it.

        Weights that the user has excluded do not count.

        Returns:
            One sentence; empty if the share is below 1%.
        """
        share = 1 - self.coverage
        if share < NOTABLE:
            return ""
        reasons: dict[str, list[Skip]] = {}
        for skip in self.skipped:
            if skip.fix:
                reasons.setdefault(skip.reason.split(";")[0], []).append(skip)
        parts = [
            f"{sum(math.prod(skip.shape) for skip in skips):,} in {_few([s.path for s in skips])} "
            f"({reason}; {skips[0].fix})"
            for reason, skips in reasons.items()
        ]
        text = "; ".join(parts)
        return f"{share:.1%} of the weights that could be pruned are left alone: {text}."

    def unmet(self, sparsity: float, kept: Sequence[int]) -> str:
        """The requested and the reached sparsity where they differ, and why.

        Args:
            sparsity: the requested overall fraction of zeros.
            kept: the number of entries that stay in each target.

        Returns:
            A sentence for each budget that is not met; empty if all are.
        """
        tied = self._tied_paths()
        budgets: dict[tuple[Pattern, float], list[tuple[Target, int]]] = {}
        for target, count in zip(self.targets, kept, strict=True):
            asked = sparsity if target.sparsity is None else target.sparsity
            if target.path not in tied:
                budgets.setdefault((target.pattern, asked), []).append((target, count))
        groups: dict[tuple[Channel, float], list[Group]] = {}
        for group in self.groups:
            asked = sparsity if group.sparsity is None else group.sparsity
            groups.setdefault((group.pattern, asked), []).append(group)
        found = [_unmet(*budget, members) for budget, members in budgets.items()]
        found += [_unmet_groups(*budget, members) for budget, members in groups.items()]
        return " ".join(filter(None, found))

    def wasted(self, kept: Sequence[int]) -> str:
        """A sentence for each embedding table that becomes much sparser than the rest.

        Args:
            kept: the number of entries that stay in each target.
        """
        sizes = [math.prod(target.shape) for target in self.targets]
        overall = 1 - sum(kept) / sum(sizes)
        found = []
        for target, size, count in zip(self.targets, sizes, kept, strict=True):
            sparsity, zeros = 1 - count / size, (size - count) / max(1, sum(sizes) - sum(kept))
            is_shared = target.sparsity is None and target.path.endswith("embeddings")
            if is_shared and zeros > 0.1 and sparsity > overall + 0.1:
                found.append(
                    f"{target.path} gets {zeros:.0%} of all zeros (sparsity {sparsity:.2f}, "
                    f"overall {overall:.2f}). It is a table of which rows are looked up: its zeros "
                    "make the file smaller and nothing faster, and a refit cannot make up for "
                    f"them. To give it fewer, pass overrides={{{target.path!r}: "
                    f"{round(overall, 2):g}}}, or None in place of the number."
                )
        return " ".join(found)

    # ------------------------------------------------------------------ checks

    def check_final(self, sparsity: float | None) -> None:
        """Raise if a mapping given as `allocation` does not give the final sparsity."""
        if not isinstance(self.allocation, PerWeight) or sparsity is None:
            return
        shared: dict[Pattern, dict[str, int]] = {}
        for each in self.decided():
            if each.sparsity is None:
                shared.setdefault(each.pattern, {})[each.path] = each.units
        for pattern, units in shared.items():
            self.allocation.check_final(units, sparsity, pattern if len(shared) > 1 else None)

    def same_as(self, other: "Plan") -> bool:
        """Whether masks made for one plan fit the other; names may differ after loading."""
        return self._nameless() == other._nameless()

    def _nameless(self) -> tuple[object, ...]:
        """What determines the masks, with the position of each target in place of its path."""
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


def _few(paths: Sequence[str], most: int = 3) -> str:
    """The first names of a list, and how many more there are."""
    more = f" and {len(paths) - most} more" if len(paths) > most else ""
    return ", ".join(paths[:most]) + more


def _unmet(pattern: Pattern, asked: float, members: Sequence[tuple[Target, int]]) -> str:
    """The sentence for the targets of one budget, with what is kept; empty if it is met."""
    sizes = [math.prod(target.shape) for target, _ in members]
    reached = 1 - sum(count for _, count in members) / sum(sizes)
    least = len(members) / sum(sizes)  # a difference of one entry in each target is rounding
    if abs(reached - asked) <= max(_tolerance(asked), least):
        return ""
    if reached > asked and isinstance(pattern, Unstructured):
        return f"A sparsity of {asked:.4g} was asked for and it is {reached:.4g}: more was zero."
    units = {target.path: target.units for target, _ in members}
    few = _few([f"{path}: {units[path]:,}" for path in sorted(units, key=units.__getitem__)])
    why = (
        "inputs that fill no group keep more of their weights"
        if isinstance(pattern, FixedPattern)
        else f"whole units of the pattern are removed and at least one stays in each weight ({few})"
    )
    return f"A sparsity of {asked:.4g} was asked for and {pattern!r} reaches {reached:.4g}: {why}."


def _unmet_groups(pattern: Channel, asked: float, groups: Sequence[Group]) -> str:
    """The sentence for the groups of one budget; empty if it is met.

    It counts units, not entries: one weight may be in several groups.
    """
    units = {group.path: group.units for group in groups}
    kept = sum(pattern.count(count, asked) for count in units.values())
    reached = 1 - kept / sum(units.values())
    if abs(reached - asked) <= _tolerance(asked):
        return ""
    few = _few([f"{path}: {units[path]:,}" for path in sorted(units, key=units.__getitem__)])
    whole = "whole number" if pattern.multiple == 1 else f"multiple of {pattern.multiple}"
    return (
        f"A sparsity of {asked:.4g} was asked for and {pattern!r} reaches {reached:.4g} of the "
        f"tied channels: each group keeps a {whole} of them, at least {pattern.multiple} ({few})."
    )


def _tolerance(asked: float) -> float:
    """The difference to a requested sparsity up to which it counts as met."""
    return min(TOLERANCE, 0.1 * (1 - asked))
