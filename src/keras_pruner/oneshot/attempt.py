"""One attempt at pruning a model: masks, then the walk that refits, in one stage or several."""

import dataclasses
import math
from typing import Any

import keras
import numpy as np

from keras_pruner import backends
from keras_pruner.criteria import magnitude, needs_inputs, scores_as_given
from keras_pruner.masks import MaskedWeight, decide
from keras_pruner.oneshot.calibration import Samples
from keras_pruner.oneshot.linear_layers import Linear
from keras_pruner.oneshot.listen import Values, run
from keras_pruner.oneshot.reconstruct import Outcome, Walk, go, inputs_of
from keras_pruner.oneshot.removal import Removal
from keras_pruner.oneshot.sparsegpt import Groups
from keras_pruner.oneshot.survey import Survey, survey
from keras_pruner.patterns import NM, BudgetedPattern
from keras_pruner.plan import Plan, Target
from keras_pruner.reporting.console import Announce

_NO_PRODUCT = "no product of inputs with this weight is known: mask alone"
_EMBEDDING = "an embedding looks rows up; each stands alone, so that nothing can make up for it"

_HUGE = 1e6
"""Masks add numbers like -1e9 to what is not to count."""


@dataclasses.dataclass(frozen=True, eq=False)
class Calibrated:
    """A dense model that has been run on calibration samples.

    Attributes:
        fit: samples to fit on.
        held: samples to judge by.
        survey: in which order it calls its layers.
        outputs: the dense model's, for the held samples.
        refit: whether weights are refitted.
        batch_norm: whether batch norms are re-estimated.
    """

    fit: Samples
    held: Samples
    survey: Survey
    outputs: list[np.ndarray]
    refit: bool
    batch_norm: bool

    @classmethod
    def of(
        cls, model: keras.Model, samples: Samples, *, refit: bool, batch_norm: bool
    ) -> "Calibrated":
        """Survey the model and note its outputs."""
        fit, held = samples.split()
        heard = survey(model, fit.batches()[0])
        outputs = outputs_of(model, held)
        if any(np.isnan(output).any() for output in outputs):
            raise ValueError(
                f"`calibration` must be inputs on which {model.name!r} gives numbers. Received: "
                "samples for which some of its outputs are NaN."
            )
        return cls(fit, held, heard, outputs, refit, batch_norm)


@dataclasses.dataclass(frozen=True, eq=False)
class Attempt:
    """What all attempts at a model have in common.

    Attributes:
        model: to prune in place.
        calibrated: None to prune without calibration.
        sparsity: overall fraction of zeros.
        stages: rounds of pruning and refitting.
        chosen_by: "sparsegpt" if that chooses the masks and updates the weights, "refit" if masks
            are chosen in the course of the refit; "" if they are made before.
    """

    model: keras.Model
    calibrated: Calibrated | None
    sparsity: float
    stages: int
    chosen_by: str = ""

    def variables(self, plan: Plan) -> list[keras.Variable]:
        """Everything that may change."""
        found = list(plan.variables)
        if self.calibrated is not None:
            pruned = {id(variable) for variable in found}
            for node in self.calibrated.survey.order:
                if isinstance(node, keras.layers.BatchNormalization):
                    found += [node.moving_mean, node.moving_variance]
                elif node.bias is not None and id(node.kernel) in pruned:
                    found.append(node.bias)
        return list({id(variable): variable for variable in found}.values())

    def steps(self, plan: Plan) -> int:
        """How many layers will be announced."""
        if self.calibrated is None:
            return 0
        masks = {id(variable): np.empty(0, bool) for variable in plan.variables}
        walk = self._walk(masks, Values([], []), lambda _: None, plan, is_dense=True)
        return self.stages * len(walk.nodes())

    def go(self, plan: Plan, dense: Values, announce: Announce) -> dict[int, Outcome]:
        """Prune the model, which is dense, as the plan says; what became of each weight."""
        outcomes: dict[int, Outcome] = {}
        masks: dict[int, np.ndarray] = {}
        for stage in range(1, self.stages + 1):
            # Each stage leaves the same fraction of what the one before has left.
            sparsity = 1 - (1 - self.sparsity) ** (stage / self.stages)
            masks = self._masks(plan, masks, self.sparsity if stage == self.stages else sparsity)
            if self.calibrated is None:
                _apply(plan, masks)
                return outcomes
            if stage > 1:
                dense.but({id(variable) for variable in plan.variables}).restore()
            outcomes = go(self._walk(masks, dense, announce, plan, is_dense=stage == 1))
        return {id(v): self._outcome(v, t, outcomes) for t, v in _both(plan)}

    def divergence(self) -> float | None:
        """How far the outputs are from the dense model's on held-out samples."""
        if self.calibrated is None:
            return None
        found = outputs_of(self.model, self.calibrated.held)
        pairs = zip(found, self.calibrated.outputs, strict=True)
        return float(np.mean([relative_difference(a, b) for a, b in pairs]))

    def _walk(
        self,
        masks: dict[int, np.ndarray],
        dense: Values,
        announce: Announce,
        plan: Plan,
        *,
        is_dense: bool,
    ) -> Walk:
        known = self.calibrated
        assert known is not None
        return Walk(
            self.model,
            known.fit,
            known.held,
            known.survey,
            masks,
            dense,
            is_dense,
            known.batch_norm,
            known.refit,
            announce,
            self._groups(plan) if self.chosen_by == "sparsegpt" else {},
            self._removals(plan) if self.chosen_by == "refit" else {},
        )

    def _groups(self, plan: Plan) -> dict[int, Groups | None]:
        """For each kernel that SparseGPT can prune: the inputs an N:M pattern compares, if any."""
        found = {}
        for target, variable in _both(plan):
            linear = self._linear(variable)
            if linear is not None:
                found[id(variable)] = _groups_of(target, linear)
        return found

    def _removals(self, plan: Plan) -> dict[int, Removal]:
        """For each kernel that is refitted, unless the plan has a criterion of its own.

        Nor for a pattern of the user's that fixes its sparsity: nobody knows how it counts.
        """
        found = {}
        for target, variable in _both(plan):
            linear = self._linear(variable)
            known = isinstance(target.pattern, BudgetedPattern | NM)
            if linear is not None and known and plan.criterion is magnitude:
                found[id(variable)] = Removal(target)
        return found

    def _masks(
        self, plan: Plan, before: dict[int, np.ndarray], sparsity: float
    ) -> dict[int, np.ndarray]:
        """All masks, before anything is assigned."""
        weights = [MaskedWeight(t, v, _mask(before, v)) for t, v in _both(plan)]
        if needs_inputs(plan.criterion):
            weights = [
                self._scored(weight, v, plan)
                for weight, v in zip(weights, plan.variables, strict=True)
            ]
            plan = dataclasses.replace(plan, criterion=scores_as_given)
        masks = decide(weights, plan, sparsity, self.sparsity)
        return {id(v): mask for v, mask in zip(plan.variables, masks, strict=True)}

    def _scored(self, weight: MaskedWeight, variable: keras.Variable, plan: Plan) -> MaskedWeight:
        """The weight with its scores in place of its values."""
        linear = self._linear(variable)
        values = weight.read()
        if linear is None:
            scores = np.abs(values)
        else:
            matrix = linear.view.to_matrix(values).astype(np.float32)
            inputs = inputs_of(
                self._walk({}, Values([], []), lambda _: None, plan, is_dense=True), linear
            )
            criterion: Any = plan.criterion
            given = np.asarray(criterion(matrix, inputs))
            if given.shape != matrix.shape:
                raise ValueError(
                    "`criterion` must give one score for each weight. Received: scores of shape "
                    f"{given.shape} for {weight.path}, as a matrix {matrix.shape}."
                )
            scores = linear.view.from_matrix(given)
        return dataclasses.replace(weight, variable=scores)

    def _linear(self, variable: keras.Variable) -> Linear | None:
        assert self.calibrated is not None
        heard = self.calibrated.survey
        for node in heard.order:
            known = isinstance(node, Linear) and id(node.kernel) not in heard.reasons
            if known and node.kernel is variable:
                return node
        return None

    def _outcome(
        self, variable: keras.Variable, target: Target, outcomes: dict[int, Outcome]
    ) -> Outcome:
        """What the walk did to a weight, or why it did nothing."""
        known = self.calibrated
        assert known is not None
        if id(variable) in outcomes or not known.refit:
            return outcomes.get(id(variable), Outcome(note="mask alone, as asked for"))
        name = target.path.rsplit("/", 1)[-1].split(":")[0]
        reason = _EMBEDDING if name == "embeddings" else _NO_PRODUCT
        return Outcome(note=known.survey.reasons.get(id(variable), reason))


def _both(plan: Plan) -> list[tuple[Target, keras.Variable]]:
    return list(zip(plan.targets, plan.variables, strict=True))


def _groups_of(target: Target, linear: Linear) -> Groups | None:
    """The rows of the matrix that N:M compares: consecutive inputs within a kernel's tap."""
    if not isinstance(target.pattern, NM):
        return None
    shape = target.view.kernel_shape
    per_tap = -(-shape[-2] // target.pattern.m)
    taps = np.arange(math.prod(shape[:-2])).reshape(*shape[:-2], 1, 1) * per_tap
    numbers = taps + (np.arange(shape[-2]) // target.pattern.m)[:, None]
    kernel = target.view.from_kernel(np.broadcast_to(numbers, shape))
    return Groups(linear.view.to_matrix(kernel)[0, :, 0], target.pattern.n)


def _mask(masks: dict[int, np.ndarray], variable: keras.Variable) -> np.ndarray:
    given = masks.get(id(variable))
    return np.broadcast_to(np.True_, tuple(variable.shape)) if given is None else given


def _apply(plan: Plan, masks: dict[int, np.ndarray]) -> None:
    for variable in plan.variables:
        values = backends.current().to_numpy(variable)
        variable.assign(np.where(masks[id(variable)], values, np.zeros([], values.dtype)))


def outputs_of(model: keras.Model, samples: Samples) -> list[np.ndarray]:
    """Every output of the model for all samples, in float32."""
    batches = [keras.tree.flatten(run(model, batch)) for batch in samples.batches()]
    return [
        np.concatenate([keras.ops.convert_to_numpy(part) for part in parts]).astype(np.float32)
        for parts in zip(*batches, strict=True)
    ]


def relative_difference(a: np.ndarray, b: np.ndarray) -> float:
    """Mean squared difference of `a` from `b`, relative to the variance of `b`.

    Masked logits are left out. Infinite where one has a number and the other has none.
    """
    wanted = np.ma.array(b, mask=masked_logits(a, b))
    with np.errstate(invalid="ignore"):
        missing, spread = (
            float(np.ma.filled(np.square(difference).sum(), 0.0))
            for difference in (a - wanted, wanted - wanted.mean(axis=0))
        )
    return missing / max(spread, 1e-30) if np.isfinite(missing) else float("inf")


def masked_logits(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Where two outputs are masked logits, which say nothing: the same huge number in both."""
    return (a == b) & ~(np.abs(b) < _HUGE)
