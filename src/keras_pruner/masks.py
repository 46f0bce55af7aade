"""From a sparsity to the masks of all targets.

Weights and groups with the same pattern share a budget. The allocation splits it, by their scores;
each of them then keeps that number of its units with the highest scores.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import keras
import numpy as np

from keras_pruner import backends
from keras_pruner.allocations import Share
from keras_pruner.criteria import magnitude
from keras_pruner.patterns import NM, BudgetedPattern, Pattern, Unstructured
from keras_pruner.plan import Criterion, Group, Member, Plan, Target
from keras_pruner.selection import top_k
from keras_pruner.selection.across_weights import Scores
from keras_pruner.selection.top_k import Cut
from keras_pruner.validation import check_sparsity, shown

Choice = Cut | NM | np.ndarray
"""The entries of a weight that are kept: those above a cut, the largest of each N:M group, or
those of a mask with the weight's shape."""


@dataclasses.dataclass(frozen=True, eq=False)
class MaskedWeight:
    """A target with its variable and its mask, which may be in memory or on devices.

    Attributes:
        target: the plan for the variable.
        variable: the weights, or an array in their place.
        mask: boolean, of the same shape, True = kept; or an array in its place.
        averages: the variable's moving average, if the optimizer keeps one.
        slots: the other values that the optimizer keeps for each entry of the variable.
    """

    target: Target
    variable: keras.Variable
    mask: keras.Variable
    averages: tuple[keras.Variable, ...] = ()
    slots: tuple[keras.Variable, ...] = ()

    @property
    def path(self) -> str:
        """The target's path."""
        return self.target.path

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the variable."""
        return self.target.shape

    @property
    def pattern(self) -> Pattern:
        """The pattern of the zeros."""
        return self.target.pattern

    @property
    def sparsity(self) -> float | None:
        """The target's own final sparsity; None if it shares the overall budget."""
        return self.target.sparsity

    @property
    def units(self) -> int:
        """The number of units of the pattern."""
        return self.target.units

    def read(self) -> np.ndarray:
        """The weights as an array."""
        return _to_numpy(self.variable)

    def read_mask(self) -> np.ndarray:
        """The mask as an array."""
        return _to_numpy(self.mask)

    # ------------------------------------------------------------------ scores

    def scores(self, criterion: Criterion) -> np.ndarray:
        """The criterion's scores of the kernel (..., inputs, outputs); -inf for pruned entries.

        Raises:
            ValueError: if the weights or their scores are not finite.
        """
        kernel = self.target.view.to_kernel(self.read())
        scores = np.asarray(criterion(kernel))
        if scores.shape != kernel.shape:
            raise ValueError(
                "`criterion` must give one score for each weight. Received: scores of shape "
                f"{scores.shape} for {self.path}, of shape {kernel.shape}. Return an array of the "
                "shape of the weights."
            )
        if not scores.max() < np.inf:
            raise self._not_finite()
        return np.where(self.target.view.to_kernel(self.read_mask()), scores, -np.inf)

    def unit_scores(self, criterion: Criterion) -> np.ndarray:
        """The scores of the pattern's units, of shape (units,); -inf for pruned units."""
        return self.pattern.unit_scores(self.scores(criterion))

    def scores_in_parts(self, criterion: Criterion) -> Scores | None:
        """The unit scores of a sharded weight, on their devices.

        None if the weight is not sharded, or if units are more than single entries.
        """
        ops = backends.current()
        is_by_entry = self._is_by_magnitude(criterion) and self.pattern == Unstructured()
        if not is_by_entry or self._is_readable or not ops.is_in_parts(self.variable):
            return None
        return Scores(self._magnitudes, ops.gather(self.variable))

    def _magnitudes(self) -> Iterator[np.ndarray]:
        ops = backends.current()
        parts, gather = list(ops.parts(self.variable, self.mask)), ops.gather(self.variable)
        wrong = np.array([sum(int((~np.isfinite(weight)).sum()) for weight, _ in parts)])
        if np.any(wrong if gather is None else gather(wrong)):
            raise self._not_finite()  # in every process, so that none waits for another
        for weight, mask in parts:
            yield np.where(mask, magnitude(weight), -np.inf).reshape(-1)

    def _is_by_magnitude(self, criterion: Criterion) -> bool:
        """Whether scores are magnitudes, and the flat index is the same in kernel and variable."""
        return criterion is magnitude and self.target.view.is_kernel

    @property
    def _is_readable(self) -> bool:
        """Whether NumPy can read the weights without a copy."""
        held = isinstance(self.mask, np.ndarray) or isinstance(self.variable, np.ndarray)
        return held or backends.current().is_in_memory(self.variable)

    # ------------------------------------------------------------------ choosing

    def choose(self, count: int, criterion: Criterion) -> Choice:
        """The units to keep: the `count` with the highest scores, or those of a fixed pattern."""
        pattern, view = self.pattern, self.target.view
        if self._is_by_magnitude(criterion):
            try:
                if pattern == Unstructured():  # makes no array of the weight's size
                    return self._cut(count)
                if isinstance(pattern, NM) and not self._is_readable:
                    find_cut(self.variable, self.mask, math.prod(self.shape))  # raises for NaN
                    return pattern
            except ValueError:
                raise self._not_finite() from None
        if isinstance(pattern, BudgetedPattern):
            return view.from_kernel(pattern.keep(self.scores(criterion), count))
        return view.from_kernel(pattern(self.scores(criterion)))

    def _cut(self, count: int) -> Cut:
        if self._is_readable:
            return top_k.magnitude_cut(*self._flat(), count)
        return find_cut(self.variable, self.mask, count)

    def to_mask(self, choice: Choice) -> np.ndarray:
        """The choice as a mask of the weight's shape."""
        if isinstance(choice, Cut):
            return top_k.marked(*self._flat(), choice).reshape(self.shape)
        if isinstance(choice, NM):
            return self.target.view.from_kernel(choice(self.scores(magnitude)))
        return choice

    def apply(self, choice: Choice) -> None:
        """Set the mask to the choice, and the weights that it does not keep to zero."""
        ops = backends.current()
        if isinstance(choice, Cut):
            ops.cut(self.variable, self.mask, choice.score, choice.last)
            return
        if isinstance(choice, NM):
            shape = self.target.view.kernel_shape
            ops.keep_in_groups(self.variable, self.mask, shape, choice.n, choice.m)
        else:
            self.mask.assign(choice)
        ops.zero_pruned([self.variable], [self.mask])

    def _flat(self) -> tuple[np.ndarray, np.ndarray]:
        return self.read().reshape(-1), self.read_mask().reshape(-1)

    def _not_finite(self) -> ValueError:
        return ValueError(
            f"{self.path} holds NaN or infinite values, or `criterion` gave NaN or infinite scores "
            "for some of it, so that its weights cannot be ranked. Nothing was pruned. Load a "
            "sound checkpoint, or lower the learning rate."
        )


def _to_numpy(variable: keras.Variable | np.ndarray) -> np.ndarray:
    return variable if isinstance(variable, np.ndarray) else backends.current().to_numpy(variable)


def count_entries(which: Callable[..., np.ndarray], *variables: keras.Variable) -> int:
    """Count the entries that meet a condition, on all devices.

    Args:
        which: arrays, one of each variable, -> boolean array.
        variables: of one shape, and sharded in the same way.
    """
    ops = backends.current()
    here = sum(int(np.count_nonzero(which(*part))) for part in ops.parts(*variables))
    gather = ops.gather(variables[0])
    return here if gather is None else int(gather(np.array([here])).sum())


def find_cut(variable: keras.Variable, mask: keras.Variable, count: int) -> Cut:
    """The cut that keeps `count` entries of a sharded weight, found by counting on its devices."""
    ops = backends.current()
    return top_k.counted_cut(
        math.prod(variable.shape),
        functools.partial(ops.count_from, variable, mask),
        functools.partial(ops.count_equal, variable, mask),
        count,
    )


# ---------------------------------------------------------------------- groups of tied weights


@dataclasses.dataclass(frozen=True, eq=False)
class TiedWeights:
    """A group of tied weights, pruned by one decision.

    Attributes:
        group: the units that the members share.
        members: each member with its weight.
    """

    group: Group
    members: tuple[tuple[Member, MaskedWeight], ...]

    @property
    def path(self) -> str:
        """The group's path."""
        return self.group.path

    @property
    def pattern(self) -> Pattern:
        """The group's pattern, which says how scores are pooled."""
        return self.group.pattern

    @property
    def sparsity(self) -> float | None:
        """The group's own final sparsity; None if it shares the overall budget."""
        return self.group.sparsity

    @property
    def units(self) -> int:
        """The number of units that are kept or removed as one."""
        return self.group.units

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the largest kernel."""
        return max((weight.shape for _, weight in self._scoring), key=math.prod)

    @property
    def _scoring(self) -> list[tuple[Member, MaskedWeight]]:
        return [(member, weight) for member, weight in self.members if not member.follows]

    def unit_scores(self, criterion: Criterion) -> np.ndarray:
        """The score of each unit, of shape (units,); -inf for pruned units.

        The mean or maximum of the scores of all entries of the unit, in all kernels of the group.
        Pruned entries do not count.
        """
        if self.group.pattern.pooling == "max":
            found = np.full(self.units, -np.inf)
            for unit, scores in self._entries(criterion):
                np.maximum.at(found, unit, scores.max(axis=1))
            return found
        sums, counts = np.zeros(self.units), np.zeros(self.units)
        for unit, scores in self._entries(criterion):
            live = scores > -np.inf
            np.add.at(sums, unit, scores.sum(axis=1, where=live))
            np.add.at(counts, unit, live.sum(axis=1))
        return np.divide(sums, counts, where=counts > 0, out=np.full(self.units, -np.inf))

    def _entries(self, criterion: Criterion) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """For each kernel: the units, of shape (n,), and the scores of their entries, (n, m)."""
        for member, weight in self._scoring:
            scores = weight.target.view.from_kernel(weight.scores(criterion)).astype(np.float64)
            rows = np.moveaxis(scores, member.axis, 0).reshape(scores.shape[member.axis], -1)
            unit = member.unit_of(len(rows))
            yield unit[unit >= 0], rows[unit >= 0]

    def scores_in_parts(self, criterion: Criterion) -> None:
        """None: the entries of a unit are spread over several weights."""
        del criterion

    def masks(self, count: int, criterion: Criterion) -> Iterator[tuple[MaskedWeight, np.ndarray]]:
        """Each member's weight, and its mask that keeps the `count` highest-scored units."""
        kept = top_k.largest(self.unit_scores(criterion), count)
        for member, weight in self.members:
            unit = member.unit_of(weight.shape[member.axis])
            stays = kept[unit] | (unit < 0)
            along = [1] * len(weight.shape)
            along[member.axis] = -1
            yield weight, np.broadcast_to(stays.reshape(along), weight.shape)


def _tied(weights: Sequence[MaskedWeight], plan: Plan) -> list[TiedWeights]:
    """The groups of a plan with their weights; weights that are not trained are left out."""
    by_path = {weight.path: weight for weight in weights} if plan.groups else {}
    found = []
    for group in plan.groups:
        members = tuple((m, by_path[m.path]) for m in group.members if m.path in by_path)
        if any(not member.follows for member, _ in members):
            found.append(TiedWeights(group, members))
    return found


# ---------------------------------------------------------------------- all weights


def choose(
    weights: Sequence[MaskedWeight], plan: Plan, sparsity: float, final_sparsity: float | None
) -> list[Choice]:
    """The units of each weight that are kept at `sparsity`.

    Weights and groups with the same pattern share a budget. A weight with its own sparsity
    approaches it in the same proportion as the others approach `final_sparsity`. A fixed pattern is
    applied at once.
    """
    groups = _tied(weights, plan)
    tied = {weight for group in groups for _, weight in group.members}
    single = [weight for weight in weights if weight not in tied]
    counts = _counts([*single, *groups], plan, sparsity, final_sparsity)
    chosen = {w: w.choose(counts.get(w, 0), plan.criterion) for w in single}
    for group in groups:
        for weight, mask in group.masks(counts[group], plan.criterion):
            before = chosen.get(weight)  # of another group, along another axis
            chosen[weight] = mask.copy() if before is None else before & mask
    return [chosen[weight] for weight in weights]


def decide(
    weights: Sequence[MaskedWeight], plan: Plan, sparsity: float, final_sparsity: float | None
) -> list[np.ndarray]:
    """The masks that keep what `choose` chooses."""
    choices = choose(weights, plan, sparsity, final_sparsity)
    return [weight.to_mask(choice) for weight, choice in zip(weights, choices, strict=True)]


def count_kept(weights: Sequence[MaskedWeight], plan: Plan, sparsity: float) -> Iterator[int]:
    """The number of entries of each weight that are kept at the final sparsity `sparsity`."""
    choices = choose(weights, plan, sparsity, sparsity)
    for weight, choice in zip(weights, choices, strict=True):
        yield int(np.count_nonzero(weight.to_mask(choice)))


Decided = MaskedWeight | TiedWeights
"""One decision: a single weight is a group of one."""


def _counts(
    decided: Sequence[Decided], plan: Plan, sparsity: float, final_sparsity: float | None
) -> dict[Decided, int]:
    """The number of units to keep of each, except under fixed patterns."""
    counts: dict[Decided, int] = {}
    sharing: dict[BudgetedPattern, list[Decided]] = {}
    for each in decided:
        pattern = each.pattern
        if not isinstance(pattern, BudgetedPattern):
            continue
        if each.sparsity is None:
            sharing.setdefault(pattern, []).append(each)
        else:
            progress = min(1.0, sparsity / final_sparsity) if final_sparsity else 1.0
            counts[each] = pattern.count(each.units, progress * each.sparsity)
    for pattern, members in sharing.items():
        check_sparsity("sparsity", sparsity)  # a schedule of the user's own may give any number
        counts |= _split(pattern, members, plan, sparsity)
    return counts


def _split(
    pattern: BudgetedPattern, members: Sequence[Decided], plan: Plan, sparsity: float
) -> dict[Decided, int]:
    """The number of units to keep of each of those that share the budget of one pattern."""
    shares = [_share(each, plan.criterion) for each in members]
    sparsities = plan.allocation(shares, sparsity)
    check_sparsities(sparsities, shares)
    return {
        each: pattern.count(each.units, sparsities[share])
        for each, share in zip(members, shares, strict=True)
    }


def _share(each: Decided, criterion: Criterion) -> Share:
    scores = functools.partial(each.unit_scores, criterion)
    return Share(each.path, each.shape, each.units, scores, each.scores_in_parts(criterion))


def check_sparsities(sparsities: object, shares: Sequence[Share]) -> None:
    """Raise unless an allocation has given each share a sparsity in [0, 1]."""
    known = sparsities if isinstance(sparsities, Mapping) else {}
    missing = [share.path for share in shares if share not in known]
    if missing:
        raise ValueError(
            "`allocation` must give a mapping from each share to its sparsity. Received: "
            f"{shown(sparsities)}, which has none for {missing}. Return "
            "`{share: sparsity for share in shares}`."
        )
    for share in shares:
        if not 0 <= known[share] <= 1:
            raise ValueError(
                "`allocation` must give each weight a sparsity in [0, 1]. Received for "
                f"{share.path}: {known[share]!r}."
            )
