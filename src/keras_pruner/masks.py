"""From a sparsity to the masks of all targets: scores, budgets, patterns."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np

from keras_pruner.allocations import Share
from keras_pruner.criteria import magnitude
from keras_pruner.patterns import NM, Pattern, Unstructured
from keras_pruner.plan import Criterion, Plan, Target
from keras_pruner.selection import top_k
from keras_pruner.selection.across_weights import Scores
from keras_pruner.selection.top_k import Cut, kept_count
from keras_pruner.validation import check_sparsity, shown


@dataclasses.dataclass(frozen=True)
class Groups:
    """The best `n` of every `m` inputs, by magnitude, of a weight seen as a kernel of `shape`."""

    n: int
    m: int
    shape: tuple[int, ...]


Choice = Cut | Groups | np.ndarray
"""Which entries of a weight stay: where they end, which groups decide for themselves, or a mask
of the weight's shape.
"""


@dataclasses.dataclass(frozen=True, eq=False)
class Weight:
    """A target with its present value and mask, read when asked for.

    Attributes:
        target: what it is.
        read: gives the weights.
        read_mask: gives the present mask, True = kept.
        find_cut: gives the cut that keeps so many entries of the largest magnitude, where there
            is a better way to find it than by reading the weight.
        parts: gives weights and masks in the parts that several devices hold of them. None: the
            weight is in one piece.
        gather: as `ranking.Scores.gather`, for those parts.
    """

    target: Target
    read: Callable[[], np.ndarray]
    read_mask: Callable[[], np.ndarray]
    find_cut: Callable[[int], Cut] | None = None
    parts: Callable[[], Iterable[tuple[np.ndarray, ...]]] | None = None
    gather: Callable[[np.ndarray], np.ndarray] | None = None

    def scores(self, criterion: Criterion) -> np.ndarray:
        """The criterion's scores as a kernel (..., inputs, outputs); -inf for the pruned."""
        kernel = self.target.to_kernel(self.read())
        scores = np.asarray(criterion(kernel))
        if scores.shape != kernel.shape:
            raise ValueError(
                "`criterion` must give one score for each weight. Received: scores of shape "
                f"{scores.shape} for {self.target.path}, of shape {kernel.shape}."
            )
        if not scores.max() < np.inf:
            raise self._not_finite()
        return np.where(self.target.to_kernel(self.read_mask()), scores, -np.inf)

    def scores_in_parts(self, criterion: Criterion) -> Scores | None:
        """The units' scores where they are, if every entry is a unit with a score of its own."""
        is_by_entry = self._is_plain(criterion) and self.target.pattern == Unstructured()
        if self.parts is None or not is_by_entry:
            return None
        return Scores(self._magnitudes, self.gather)

    def _magnitudes(self) -> Iterator[np.ndarray]:
        parts = list(self.parts() if self.parts else ())
        wrong = np.array([sum(int((~np.isfinite(weight)).sum()) for weight, _ in parts)])
        if np.any(wrong if self.gather is None else self.gather(wrong)):
            raise self._not_finite()  # in every process: none may wait for another
        for weight, mask in parts:
            yield np.where(mask, magnitude(weight), -np.inf).reshape(-1)

    def _is_plain(self, criterion: Criterion) -> bool:
        """Whether an entry's score is its magnitude, and its place in the kernel its own."""
        return criterion is magnitude and self.target.is_kernel

    def choose(self, count: int, criterion: Criterion) -> Choice:
        """Which `count` units stay: those of the highest scores."""
        target, pattern = self.target, self.target.pattern
        if self._is_plain(criterion):
            try:
                if pattern == Unstructured():  # nothing of the weight's size is made
                    return self._cut(count)
                if isinstance(pattern, NM) and self.find_cut is not None:
                    self.find_cut(target.units)  # raises for what is not finite
                    return Groups(pattern.n, pattern.m, target.kernel_shape)
            except ValueError:
                raise self._not_finite() from None
        return target.from_kernel(pattern.keep(self.scores(criterion), count))

    def _cut(self, count: int) -> Cut:
        if self.find_cut is not None:
            return self.find_cut(count)
        return top_k.magnitude_cut(*self._flat(), count)

    def mask(self, choice: Choice) -> np.ndarray:
        """The choice as a mask of the weight's shape."""
        if isinstance(choice, Cut):
            return top_k.marked(*self._flat(), choice).reshape(self.target.shape)
        if isinstance(choice, Groups):
            return self.target.from_kernel(NM(choice.n, choice.m)(self.scores(magnitude)))
        return choice

    def _flat(self) -> tuple[np.ndarray, np.ndarray]:
        return self.read().reshape(-1), self.read_mask().reshape(-1)

    def _not_finite(self) -> ValueError:
        return ValueError(
            f"{self.target.path} holds NaN or infinite values (or `criterion` made some of it), "
            "so that there is no telling which of its weights matter. Nothing was pruned. Load a "
            "sound checkpoint, or lower the learning rate."
        )


def choose(
    weights: Sequence[Weight], plan: Plan, sparsity: float, final_sparsity: float | None
) -> list[Choice]:
    """Which units of each weight stay at `sparsity`.

    Weights that share a pattern share a budget. A weight with a sparsity of its own comes to it
    in the same proportion as the others come to `final_sparsity`; N:M comes at once.
    """
    counts = _counts(weights, plan, sparsity, final_sparsity)
    return [weight.choose(counts[weight], plan.criterion) for weight in weights]


def decide(
    weights: Sequence[Weight], plan: Plan, sparsity: float, final_sparsity: float | None
) -> list[np.ndarray]:
    """`choose`, as masks."""
    choices = choose(weights, plan, sparsity, final_sparsity)
    return [weight.mask(choice) for weight, choice in zip(weights, choices, strict=True)]


def _counts(
    weights: Sequence[Weight], plan: Plan, sparsity: float, final_sparsity: float | None
) -> dict[Weight, int]:
    """How many units of each weight stay."""
    counts: dict[Weight, int] = {}
    sharing: dict[Pattern, dict[Share, Weight]] = {}
    for weight in weights:
        target = weight.target
        if isinstance(target.pattern, NM):
            counts[weight] = target.pattern.kept(target.kernel_shape)
        elif target.sparsity is not None:
            progress = min(1.0, sparsity / final_sparsity) if final_sparsity else 1.0
            counts[weight] = kept_count(target.units, progress * target.sparsity)
        else:
            scores = functools.partial(_unit_scores, weight, plan.criterion)
            in_parts = weight.scores_in_parts(plan.criterion)
            share = Share(target.path, target.shape, target.units, scores, in_parts)
            sharing.setdefault(target.pattern, {})[share] = weight
    for shares in sharing.values():
        check_sparsity("sparsity", sparsity)  # of a schedule of the user's own
        sparsities = plan.allocation(list(shares), sparsity)
        known = sparsities if isinstance(sparsities, Mapping) else {}
        missing = [share.path for share in shares if share not in known]
        if missing:
            raise ValueError(
                "`allocation` must give a mapping from each share to its sparsity. Received: "
                f"{shown(sparsities)}, which has none for {missing}. Return "
                "`{share: sparsity for share in shares}`."
            )
        for share, weight in shares.items():
            if not 0 <= sparsities[share] <= 1:
                raise ValueError(
                    "`allocation` must give each weight a sparsity in [0, 1]. Received for "
                    f"{share.path}: {sparsities[share]!r}."
                )
            counts[weight] = kept_count(share.units, sparsities[share])
    return counts


def _unit_scores(weight: Weight, criterion: Criterion) -> np.ndarray:
    return weight.target.pattern.unit_scores(weight.scores(criterion))
