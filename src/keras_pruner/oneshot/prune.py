"""`prune`: masks, refit and batch norms in one call, all or nothing."""

import copy as copying
import dataclasses
import time
import warnings
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from keras_pruner import backends
from keras_pruner.criteria import PerOutput, magnitude, needs_inputs, scores_as_given, wanda
from keras_pruner.masks import MaskedWeight, decide
from keras_pruner.oneshot.calibration import Calibration
from keras_pruner.oneshot.distillation import Teacher
from keras_pruner.oneshot.listen import Values
from keras_pruner.oneshot.outputs import dense_outputs, outputs_of, relative_error
from keras_pruner.oneshot.reconstruct import LayerwisePass, Outcome, Recorder, Removal
from keras_pruner.oneshot.report import (
    Candidate,
    Distillation,
    PrunedWeight,
    PruneReport,
    is_embedding,
)
from keras_pruner.patterns import NM, BudgetedPattern, Pattern, Unstructured, settle_sparsity
from keras_pruner.plan import Plan, Target
from keras_pruner.reporting.console import Announce, show_progress
from keras_pruner.rules import Filters, Override, Rules
from keras_pruner.training.optimizer import find
from keras_pruner.validation import check_sparsity

AUTO_ABOVE = 0.9
"""Above this sparsity several allocations are tried if none is given."""


def prune(
    model: keras.Model,
    sparsity: float | None = None,
    *,
    pattern: Pattern = Unstructured(),  # noqa: B008 - a frozen value
    allocation: Any = None,
    criterion: Any = None,
    filters: Filters = None,
    overrides: Mapping[str, Override] | None = None,
    calibration: Any = None,
    copy: bool = False,
) -> PruneReport:
    """Prune a model at once, without labels and without training.

    With `calibration`, a few hundred of the model's inputs, the remaining weights are refitted:
    layer by layer, they are adjusted to reproduce the outputs of the dense network (layer-wise
    reconstruction), and batch norms are re-estimated. At 80% zeros this makes the difference
    between losing a few points of accuracy and losing most of it. A refit that makes a layer
    worse on held-out samples is undone.

    After an error or Ctrl-C the model is as it was.

    Args:
        model: any built Keras model, frozen weights included; pruned in place.
        sparsity: the fraction of weights to set to zero, in [0, 1). Not needed for a pattern
            that fixes it.
        pattern: the zeros allowed.
        allocation: how the overall budget is split: "lamp", "erk", "global", "uniform", a
            mapping regex -> sparsity, or a function. "auto" tries LAMP, ERK and Wanda per
            output, and keeps the one that changes the outputs on held-out samples least. None:
            "lamp", or "uniform" where the pattern is neither unstructured nor of blocks; with
            calibration and above 90% unstructured zeros, "auto".
        criterion: a function that scores weights; those with the highest scores stay. It takes
            the weights, as `kp.criteria.magnitude` does, or, with calibration, the weights and
            their inputs, as `kp.criteria.wanda` does. Masks by magnitude are the same on every
            backend. None: with a refit, weights are removed in eight rounds; each round refits
            the remaining weights, then removes those with the lowest scores. Without a refit,
            magnitude.
        filters: layers to prune: a regex or a list of them, or a function layer -> bool.
        overrides: regex of a weight's path -> None (leave alone), sparsity, pattern, or both.
        calibration: samples without labels, as the model takes them: arrays, a
            `tf.data.Dataset`, a PyTorch `DataLoader`, a Keras `PyDataset`, a generator of
            batches. 512 are a good number. `kp.oneshot.Calibration(data, ...)` sets how many to
            use, and what to do with them.
        copy: whether to prune a copy, returned in the report, and leave `model` alone.

    Returns:
        The result for each weight; prints as a table.

    Raises:
        ValueError: for arguments that are wrong or contradict each other, for a model with
            nothing to prune, and for unusable calibration; before anything is changed.

    Example:
        >>> layers = [keras.Input((20,)), keras.layers.Dense(32, "relu"), keras.layers.Dense(3)]
        >>> model = keras.Sequential(layers)
        >>> x = np.random.default_rng(0).normal(size=(512, 20))
        >>> report = prune(model, 0.75, calibration=x)
        >>> report.sparsity
        0.75
    """
    began = time.perf_counter()
    sparsity = _sparsity_for(sparsity, pattern)
    options = None if calibration is None else Calibration.of(calibration)
    if options is None:
        _check_without_calibration(allocation, criterion)
    _check_criterion(criterion)
    if allocation is None and options is not None and _tries_several(sparsity, pattern, criterion):
        allocation = "auto"
    rules = _rules(pattern, allocation, criterion, filters, overrides)
    plans = {name: rule.plan(model, frozen=True) for name, rule in rules.items()}
    for plan in plans.values():
        plan.check_final(sparsity)
    if options is not None and options.distillation_epochs:
        _check_trainable(next(iter(plans.values())))
    if copy:
        model = copy_of(model)
        plans = {name: rule.plan(model, frozen=True) for name, rule in rules.items()}
    else:
        _check_not_in_training(model)
    if options is None:
        (plan,) = plans.values()
        mask_alone(plan, sparsity)
        result = _Result({})
    else:
        in_rounds = criterion is None and options.refit
        reconstruction = Reconstruction.of(model, sparsity, options, in_rounds=in_rounds)
        result = _best(reconstruction, plans)
    seconds = time.perf_counter() - began
    return _report(model, next(iter(plans.values())), result, sparsity, seconds)


# ---------------------------------------------------------------------- arguments


def _sparsity_for(sparsity: float | None, pattern: Pattern) -> float:
    """The overall sparsity: the given one, or the one that the pattern fixes."""
    if sparsity is not None:
        check_sparsity("sparsity", sparsity)
    settled = settle_sparsity("sparsity", sparsity, pattern)
    if settled is None:
        raise ValueError(
            "`sparsity` is missing: give the fraction of weights to set to zero. "
            "Received: sparsity=None. For 80% zeros pass 0.8."
        )
    return float(settled)


def _is_auto(allocation: Any) -> bool:
    return isinstance(allocation, str) and allocation == "auto"


def _check_without_calibration(allocation: Any, criterion: Any) -> None:
    name = getattr(criterion, "__name__", criterion)
    needs = {
        'allocation="auto"': _is_auto(allocation),
        f"criterion={name}": needs_inputs(criterion),
    }
    for argument, needed in needs.items():
        if needed:
            raise ValueError(
                f"`calibration` is needed for {argument}. Received: calibration=None. Pass a few "
                "hundred of the model's inputs."
            )


def _check_criterion(criterion: Any) -> None:
    if isinstance(criterion, str):
        raise ValueError(
            "`criterion` must be a function such as kp.criteria.magnitude or kp.criteria.wanda. "
            f"Received: criterion={criterion!r}. Leave it out to remove weights in rounds of "
            "refitting, with `calibration`."
        )


def _tries_several(sparsity: float, pattern: Pattern, criterion: Any) -> bool:
    """Whether to try several allocations: above 90% unstructured zeros, none was always best."""
    is_default = criterion is None or criterion is magnitude
    return sparsity > AUTO_ABOVE and isinstance(pattern, Unstructured) and is_default


def _rules(
    pattern: Pattern,
    allocation: Any,
    criterion: Any,
    filters: Filters,
    overrides: Mapping[str, Override] | None,
) -> dict[str, Rules]:
    """The rules to try, by name."""
    criterion = criterion or magnitude
    if not _is_auto(allocation):
        return {"": Rules(pattern, allocation, criterion, filters, overrides)}
    Rules(pattern, overrides=overrides).check_split("auto")
    ways = {
        "lamp": ("lamp", criterion),
        "erk": ("erk", criterion),
        "uniform, Wanda per output": ("uniform", PerOutput(wanda)),
    }
    return {name: Rules(pattern, *way, filters, overrides) for name, way in ways.items()}


def _check_trainable(plan: Plan) -> None:
    """Raise if distillation would train no pruned weight."""
    if all(target.index is None for target in plan.targets):
        raise ValueError(
            "`distillation_epochs` trains the pruned weights, but all of them are frozen. Set "
            "their layers' `trainable` to True, or leave it out."
        )


def _check_not_in_training(model: keras.Model) -> None:
    """Raise for a model whose unfinished pruning schedule would let the new zeros grow again."""
    present = find(model)
    if present is not None and present.state.has_begun and not present.state.has_ended:
        raise ValueError(
            f"{model.name!r} is being pruned by a training whose schedule has not ended; its masks "
            "would let the new zeros grow again. Call `kp.Pruner(model).release()` first, or pass "
            "copy=True."
        )


def copy_of(model: keras.Model) -> keras.Model:
    """A deep copy of a model; raises for one that Keras cannot save and load."""
    try:
        with warnings.catch_warnings():
            if not getattr(getattr(model, "optimizer", None), "built", False):
                # An optimizer that is not built has no state to copy. Keras builds the one of the
                # copy, then warns that it has nothing to load into it.
                warnings.filterwarnings("ignore", "Skipping variable loading for optimizer")
            return copying.deepcopy(model)
    except Exception as error:
        raise ValueError(
            f"`copy` needs a model that Keras can save and load, and {model.name!r} is not one. "
            "Received: copy=True. Make the copy yourself, or pass copy=False and keep "
            f"`model.get_weights()` to go back. Keras says:\n{error}"
        ) from error


# ---------------------------------------------------------------------- masks


def mask_alone(plan: Plan, sparsity: float) -> None:
    """Set the weights to zero that the plan's criterion scores lowest; change nothing else."""
    masks = _masks(_weights(plan), plan, sparsity)
    with Values.of(plan.variables).restored_after_error():
        for variable in plan.variables:
            values = backends.current().to_numpy(variable)
            variable.assign(np.where(masks[id(variable)], values, np.zeros([], values.dtype)))


def _weights(plan: Plan) -> list[MaskedWeight]:
    """The targets with their present values, none of them pruned."""
    return [
        MaskedWeight(target, variable, np.broadcast_to(np.True_, tuple(variable.shape)))
        for target, variable in zip(plan.targets, plan.variables, strict=True)
    ]


def _masks(weights: list[MaskedWeight], plan: Plan, sparsity: float) -> dict[int, np.ndarray]:
    """The mask of each variable, by id."""
    masks = decide(weights, plan, sparsity, sparsity)
    return {id(variable): mask for variable, mask in zip(plan.variables, masks, strict=True)}


# ---------------------------------------------------------------------- with calibration


@dataclasses.dataclass(frozen=True, eq=False)
class Reconstruction:
    """Prunes and refits a dense model by a plan, and measures the error of its outputs.

    Attributes:
        sparsity: overall fraction of zeros.
        options: what to do with the samples.
        recorder: runs the model on the samples.
        outputs: the dense outputs for the held-out samples.
        in_rounds: whether weights are removed in rounds of refitting.
    """

    sparsity: float
    options: Calibration
    recorder: Recorder
    outputs: list[np.ndarray]
    in_rounds: bool

    @classmethod
    def of(
        cls, model: keras.Model, sparsity: float, options: Calibration, *, in_rounds: bool
    ) -> "Reconstruction":
        """Read the samples and run the dense model on them."""
        recorder = Recorder.of(model, options.read(model))
        outputs = dense_outputs(model, recorder.held)
        return cls(sparsity, options, recorder, outputs, in_rounds)

    @property
    def model(self) -> keras.Model:
        """The model."""
        return self.recorder.model

    def variables(self, plan: Plan) -> list[keras.Variable]:
        """The variables that pruning by a plan may change."""
        if self.options.distillation_epochs:
            return self.model.variables
        pruned = {id(variable): variable for variable in plan.variables}
        others: list[keras.Variable] = []
        for node in self.recorder.trace.order:
            if isinstance(node, keras.layers.BatchNormalization):
                others += [node.moving_mean, node.moving_variance]
            elif node.bias is not None and id(node.kernel) in pruned:
                others.append(node.bias)
        return list((pruned | {id(variable): variable for variable in others}).values())

    def run(self, plan: Plan, dense: Values, announce: Announce) -> dict[int, Outcome]:
        """Prune the dense model by a plan; the outcome for each weight, by the variable's id."""
        masks = self._masks(plan)
        outcomes = self._pass(plan, masks, dense).run(announce)
        return {
            id(variable): outcomes.get(id(variable)) or self._not_refitted(target, variable)
            for target, variable in zip(plan.targets, plan.variables, strict=True)
        }

    def steps(self, plan: Plan) -> int:
        """The number of layers that a run announces."""
        masks = {id(variable): np.empty(0, bool) for variable in plan.variables}
        return len(self._pass(plan, masks, Values([], [])).nodes)

    def relative_error(self) -> float:
        """The relative error of the present outputs on held-out samples."""
        return relative_error(outputs_of(self.model, self.recorder.held), self.outputs)

    def _pass(self, plan: Plan, masks: dict[int, np.ndarray], dense: Values) -> LayerwisePass:
        removals = self._removals(plan) if self.in_rounds else {}
        return LayerwisePass(self.recorder, self.options, masks, removals, dense)

    def _removals(self, plan: Plan) -> dict[int, Removal]:
        """How to remove weights in rounds, by the id of each kernel where that is possible.

        It is not for a plan with a criterion other than magnitude, for tied weights, or for a
        pattern of the user that fixes its sparsity: how many weights that keeps is unknown.
        """
        found = {}
        tied = {member.path for group in plan.groups for member in group.members}
        for target, variable in zip(plan.targets, plan.variables, strict=True):
            linear = self.recorder.trace.linear_of(variable)
            known = isinstance(target.pattern, BudgetedPattern | NM) and target.path not in tied
            if linear is not None and known and plan.criterion is magnitude:
                found[id(variable)] = Removal(target)
        return found

    def _masks(self, plan: Plan) -> dict[int, np.ndarray]:
        weights = _weights(plan)
        if needs_inputs(plan.criterion):
            weights = [self._scored(weight, plan.criterion) for weight in weights]
            plan = dataclasses.replace(plan, criterion=scores_as_given)
        return _masks(weights, plan, self.sparsity)

    def _scored(self, weight: MaskedWeight, criterion: Any) -> MaskedWeight:
        """A weight with its scores in place of its values."""
        scores = np.abs(weight.read())
        linear = self.recorder.trace.linear_of(weight.variable)
        if linear is not None:
            matrix = linear.view.to_matrix(weight.read()).astype(np.float32)
            given = np.asarray(criterion(matrix, self.recorder.inputs(linear)))
            if given.shape != matrix.shape:
                raise ValueError(
                    "`criterion` must give one score for each weight. Received: scores of shape "
                    f"{given.shape} for {weight.path}, as a matrix {matrix.shape}. Return an array "
                    "of the shape of the matrix."
                )
            scores = linear.view.from_matrix(given)
        return dataclasses.replace(weight, variable=scores)

    def _not_refitted(self, target: Target, variable: keras.Variable) -> Outcome:
        if not self.options.refit:
            return Outcome(note="mask alone, as asked for")
        reason = _EMBEDDING if is_embedding(target.path) else _NO_PRODUCT
        return Outcome(note=self.recorder.trace.reasons.get(id(variable), reason))


_NO_PRODUCT = "mask alone: no product of inputs with this weight is known"
_EMBEDDING = "mask alone: an embedding's rows are looked up one by one, so no refit is possible"


@dataclasses.dataclass(frozen=True, eq=False)
class _Result:
    """What pruning by one plan gave."""

    outcomes: dict[int, Outcome]
    relative_error: float | None = None
    candidates: tuple[Candidate, ...] = ()
    distillation: Distillation | None = None


def _best(reconstruction: Reconstruction, plans: Mapping[str, Plan]) -> _Result:
    """Prune by the best of the plans, then distil; after an error the weights are dense again."""
    model, options = reconstruction.model, reconstruction.options
    plan = next(iter(plans.values()))
    teacher = None
    if options.distillation_epochs:
        samples = reconstruction.recorder.fit
        teacher = Teacher.of(model, samples, options.distillation_epochs, plan=plan)
    dense = Values.of(reconstruction.variables(plan))
    steps = reconstruction.steps(plan) * len(plans) + options.distillation_epochs
    with (
        dense.restored_after_error(),
        show_progress(f"pruning {model.name}", steps, shown=options.progress) as announce,
    ):
        best, errors, outcomes = _keep_best(reconstruction, plans, dense, announce)
        distillation = None
        if teacher is not None:
            measure = reconstruction.relative_error
            distillation = teacher.improve(model, errors[best], measure, announce)
    error = distillation.after if distillation and distillation.kept else errors[best]
    tried = tuple(Candidate(name, e, name == best) for name, e in errors.items() if name)
    return _Result(outcomes, error, tried, distillation)


def _keep_best(
    reconstruction: Reconstruction, plans: Mapping[str, Plan], dense: Values, announce: Announce
) -> tuple[str, dict[str, float], dict[int, Outcome]]:
    """Prune the dense model by each plan, and leave the weights of the best one in it.

    Returns:
        The name of the best plan, the relative error of each, and the outcomes of the best one.
    """
    best, weights = "", dense
    errors: dict[str, float] = {}
    outcomes: dict[int, Outcome] = {}
    for name, plan in plans.items():
        if errors:
            dense.restore()
        found = reconstruction.run(plan, dense, announce)
        errors[name] = reconstruction.relative_error()
        if len(errors) == 1 or errors[name] < errors[best]:
            best, outcomes = name, found
            if len(plans) > 1:
                weights = Values.of(dense.variables)
    if len(plans) > 1:
        weights.restore()
    return best, errors, outcomes


# ---------------------------------------------------------------------- report


def _report(
    model: keras.Model, plan: Plan, result: _Result, sparsity: float, seconds: float
) -> PruneReport:
    rows, zeros, total, kept = [], 0, 0, []
    for target, variable in zip(plan.targets, plan.variables, strict=True):
        values = backends.current().to_numpy(variable)
        gone = values.size - int(np.count_nonzero(values))
        outcome = result.outcomes.get(id(variable), Outcome())
        rows.append(
            PrunedWeight(
                target.path,
                target.shape,
                gone / values.size,
                outcome.before,
                outcome.after,
                outcome.note,
            )
        )
        zeros, total = zeros + gone, total + values.size
        kept.append(values.size - gone)
    remarks = (plan.left_alone(), plan.unmet(sparsity, kept))
    return PruneReport(
        zeros / total,
        tuple(rows),
        plan.skipped,
        result.relative_error,
        result.candidates,
        result.distillation,
        seconds,
        model,
        tuple(remark for remark in remarks if remark),
    )
