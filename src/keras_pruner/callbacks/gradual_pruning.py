"""`GradualPruning`: from the model's present sparsity to a final one, while `fit` trains it."""

import numbers
from collections.abc import Callable, Mapping
from typing import Any

from keras_pruner.callbacks.pruning_callback import PruningCallback
from keras_pruner.criteria import magnitude
from keras_pruner.patterns import Pattern, Unstructured
from keras_pruner.plan import Criterion
from keras_pruner.rules import Filters, Override
from keras_pruner.schedules import Schedule
from keras_pruner.training.pruner import rules_of_training, schedule_for


class GradualPruning(PruningCallback):
    """Prune a model while `fit` trains it.

    `GradualPruning(0.8)` goes from the model's present sparsity to 0.8 over the first three
    quarters of the training, fast at first, in a hundred updates, and leaves the rest to recover
    (Zhu & Gupta 2017, arXiv:1710.01878). At least 50 steps are left to recover: a shorter
    training prunes all at once in its first step. The sparsity is logged under "sparsity": list
    this callback before those that read logs.

    Weights are exactly zero after every step. When the schedule has ended the optimizer is your
    own again; further training needs `KeepZeros`. If `fit` ends earlier, the next one with the
    same callback goes on; for a training from the beginning make a new one. A model that ends
    denser than its masks, as an `EarlyStopping` that restores an early epoch leaves it, is warned
    of: see `WhenSparse`.

    Args:
        schedule: the final sparsity, a schedule, or a function step -> sparsity. Not needed for
            a pattern that has its own sparsity, such as `NM(2, 4)`.
        epochs: (first, last) epoch of the pruning, counted from 0 and from this `fit`, in place
            of the schedule's steps: (1, 4) prunes from the beginning of the second epoch to the
            end of the fourth.
        pattern: the zeros allowed.
        allocation: how the overall budget is split over the weights: "lamp", "erk", "global",
            "uniform", a mapping regex -> sparsity, or a function. None: "lamp", or "uniform"
            where the pattern is neither unstructured nor of blocks.
        criterion: weights -> scores of the same shape, higher is better.
        filters: layers to prune: a regex or a list of them, or a function layer -> bool.
        overrides: regex of a weight's path -> None (leave alone), sparsity, pattern, or both.

    Raises:
        ValueError: for arguments that are wrong or do not go together.

    Example:
        >>> import keras, numpy as np
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8)])
        >>> model.compile("adam", loss="mse")
        >>> x, y = np.ones((32, 4)), np.ones((32, 8))
        >>> history = model.fit(x, y, verbose=0, epochs=2, callbacks=[GradualPruning(0.75)])
        >>> history.history["sparsity"][-1], int(np.count_nonzero(model.layers[0].kernel))
        (0.75, 8)
    """

    def __init__(
        self,
        schedule: Schedule | float | Callable[[int], float] | None = None,
        *,
        epochs: tuple[int, int] | None = None,
        pattern: Pattern = Unstructured(),  # noqa: B008 - a frozen value
        allocation: Any = None,
        criterion: Criterion = magnitude,
        filters: Filters = None,
        overrides: Mapping[str, Override] | None = None,
    ) -> None:
        rules = rules_of_training(pattern, allocation, criterion, filters, overrides)
        super().__init__(schedule_for(schedule, pattern), rules)
        self.epochs = epochs
        if epochs is None:
            return
        if not _is_span(epochs):
            raise ValueError(
                "`epochs` must be the first and the last epoch of the pruning, like (1, 4). "
                f"Received: epochs={epochs!r}."
            )
        if self.schedule.begin_step != 0 or self.schedule.end_step is not None:
            raise ValueError(
                "`epochs` and a schedule with steps of its own say the same thing twice. "
                f"Received: epochs={epochs!r}, schedule={self.schedule!r}. Leave one out."
            )

    def _fixed_steps(self) -> dict[str, int]:
        if self.epochs is None:
            return {}
        per_epoch = self._fit.per_epoch
        if per_epoch is None:
            raise ValueError(
                "`epochs` needs to know how long an epoch is, and this data does not say. "
                f"Received: epochs={self.epochs!r}. Pass `steps_per_epoch` to `fit`, or give "
                "the schedule steps: kp.PolynomialDecay(0.8, end_step=2000)."
            )
        begin, end = (int(per_epoch * each) for each in self.epochs)
        return {"begin_step": begin, "end_step": end}

    @property
    def _is_open(self) -> bool:
        return self.epochs is not None or super()._is_open

    def _settle_anew(self, epoch: int, pace: float) -> None:
        if self.epochs is None:
            super()._settle_anew(epoch, pace)
            return
        step, first = self.pruner.step, self._fit.first_epoch
        begin, end = (step + int(pace * max(0, first + each - epoch)) for each in self.epochs)
        if first + self.epochs[0] <= epoch:
            begin = self.pruner.schedule.begin_step
        self.pruner.settle_anew(end, begin_step=min(begin, end), end_step=end)


def _is_span(epochs: Any) -> bool:
    """Whether it is (first, last), whole numbers from 0 up."""
    is_pair = isinstance(epochs, (tuple, list)) and len(epochs) == 2
    whole = is_pair and all(isinstance(epoch, numbers.Integral) for epoch in epochs)
    return whole and 0 <= epochs[0] <= epochs[1]
