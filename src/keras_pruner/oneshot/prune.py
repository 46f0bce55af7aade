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
from keras_pruner.criteria import PerOutput, magnitude, needs_inputs, wanda
from keras_pruner.oneshot import calibration as samples_of
from keras_pruner.oneshot.attempt import Attempt, Calibrated, outputs_of
from keras_pruner.oneshot.distillation import Teacher
from keras_pruner.oneshot.listen import Values, undisturbed
from keras_pruner.oneshot.reconstruct import Outcome
from keras_pruner.oneshot.report import Candidate, Distillation, PrunedWeight, PruneReport
from keras_pruner.patterns import NM, Pattern, Unstructured, settle_sparsity
from keras_pruner.plan import Plan
from keras_pruner.reporting.console import Announce, show_progress
from keras_pruner.rules import Filters, Override, Rules
from keras_pruner.training.optimizer import find
from keras_pruner.validation import check_integer, check_sparsity

AUTO_ABOVE = 0.9
"""Without an allocation given, above this sparsity several are tried."""


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
    refit: bool = True,
    batch_norm: bool = True,
    samples: int | None = None,
    stages: int = 1,
    distillation_epochs: int = 0,
    copy: bool = False,
    progress: bool = True,
) -> PruneReport:
    """Prune a model at once, without labels.

    With `calibration`, a few hundred of the model's inputs without labels, the weights that
    stay are refitted layer by layer to what the dense network computed, and batch norms are
    re-estimated. At 80% zeros that is the difference between losing a few points of accuracy
    and losing most of it. A refit that makes a layer worse on held-out samples is undone.

    After an error or Ctrl-C the model is as it was.

    Args:
        model: any built Keras model, frozen weights included; pruned in place.
        sparsity: the fraction of weights to set to zero, in [0, 1). Not needed for a pattern
            that has its own.
        pattern: the zeros allowed.
        allocation: how the overall budget is split: "lamp", "erk", "global", "uniform", a
            mapping regex -> sparsity, or a function. "auto" tries LAMP, ERK and Wanda in each
            output, and keeps what changes the outputs on held-out samples least. None: "lamp",
            or "uniform" where the pattern is neither unstructured nor of blocks; with
            calibration and above 90% unstructured zeros, "auto".
        criterion: what decides which weights stay. "refit": in each layer they leave in rounds,
            by what a refit has made of them, until as many are left as the allocation gives it
            by magnitude. A function: weights -> scores of the same shape, higher is better,
            such as `magnitude`, whose masks are the same on every backend; or of the weights
            and their inputs, such as `wanda`. "sparsegpt": layer by layer, masks and updates by
            Frantar & Alistarh 2023 in place of the refit. None: "refit" if there is one, else
            `magnitude`.
        filters: layers to prune: a regex or a list of them, or a function layer -> bool.
        overrides: regex of a weight's path -> None (leave alone), sparsity, pattern, or both.
        calibration: arrays as the model takes them, or batches of such: a `tf.data.Dataset`, a
            PyTorch `DataLoader`, a Keras `PyDataset`, a generator. 512 samples are a good
            number.
        refit: whether to refit the weights that stay.
        batch_norm: whether to re-estimate the statistics of batch norms.
        samples: the most samples to use of `calibration`; 1024 by default.
        stages: in how many rounds of pruning and refitting to come to the sparsity; more is
            slower and, at high sparsities, better.
        distillation_epochs: for how many epochs over the samples to train what is left, after
            the refit, by the dense model's outputs; no labels. A few thousand samples, and as
            many of `samples`, and 15 epochs take a narrow network near to what it was; it is
            undone if it makes the outputs on held-out samples worse.
        copy: whether to prune a copy, found in the report, and leave `model` alone.
        progress: whether to show a progress bar if there is a terminal to show it on.

    Returns:
        What was done to each weight; prints as a table.

    Raises:
        ValueError: for arguments that are wrong or do not go together, for a model with nothing
            to prune, and for calibration that cannot be used; before anything is changed.
    """
    began = time.perf_counter()
    sparsity = _sparsity_for(sparsity, pattern)
    check_integer("stages", stages, least=1)
    if samples is not None:
        check_integer("samples", samples, least=samples_of.LEAST)
    check_integer("distillation_epochs", distillation_epochs, least=0)
    if criterion is None:
        criterion = "refit" if refit and calibration is not None else magnitude
    chosen_by = _chosen_by(criterion)
    if calibration is None:
        _check_without_calibration(allocation, criterion, samples, stages, distillation_epochs)
    elif allocation is None and sparsity > AUTO_ABOVE and isinstance(pattern, Unstructured):
        allocation = "auto" if criterion is magnitude or chosen_by == "refit" else None
    auto = isinstance(allocation, str) and allocation == "auto"
    if chosen_by == "sparsegpt":
        _check_sparsegpt(refit=refit, stages=stages, auto=auto)
    if chosen_by == "refit" and not refit:
        raise ValueError(
            '`criterion` "refit" chooses weights in the course of the refit. Received: '
            "refit=False. Leave one of them out."
        )
    if chosen_by:
        criterion = magnitude  # for the allocation
    if auto:
        Rules(pattern, overrides=overrides).check_split("auto")
    ways = _candidates(criterion) if auto else {"": (allocation, criterion)}
    rules = [Rules(pattern, how, by, filters, overrides) for how, by in ways.values()]
    plan = rules[0].plan(model, frozen=True)
    plan.check_final(sparsity)
    if chosen_by == "sparsegpt":
        _check_patterns(plan)
    if distillation_epochs:
        _check_trainable(plan)
    if copy:
        model = _copy_of(model)
    else:
        _check_nobody_else_prunes(model)
    plans = {name: rule.plan(model, frozen=True) for name, rule in zip(ways, rules, strict=True)}
    plan = next(iter(plans.values()))  # of the copy, if it is one
    calibrated = teacher = None
    if calibration is not None:
        inputs = samples_of.read(calibration, model, samples or samples_of.MOST)
        calibrated = Calibrated.of(model, inputs, refit=refit, batch_norm=batch_norm)
        if distillation_epochs:
            outputs = outputs_of(model, calibrated.fit)
            teacher = Teacher(calibrated.fit, outputs, distillation_epochs, plan)
    attempt = Attempt(model, calibrated, sparsity, stages, chosen_by)
    found = _best(attempt, plans, teacher, progress)
    return _report(model, plan, found, time.perf_counter() - began)


def _check_nobody_else_prunes(model: keras.Model) -> None:
    """Refuse to make zeros that the masks of an unfinished training would let grow again."""
    wrapped = find(model)
    if wrapped is not None and wrapped.has_begun and not wrapped.finished:
        raise ValueError(
            f"{model.name!r} is in the midst of being pruned by a training, whose masks would let "
            "the new zeros grow again. Call `kp.Pruner(model).release()` first, or pass copy=True."
        )


@dataclasses.dataclass(frozen=True, eq=False)
class _Found:
    """What the best attempt came to."""

    outcomes: dict[int, Outcome]
    divergence: float | None
    candidates: tuple[Candidate, ...]
    distillation: Distillation | None


def _best(
    attempt: Attempt, plans: Mapping[str, Plan], teacher: Teacher | None, progress: bool
) -> _Found:
    """Try the plans, leave the best in the model; the dense weights after an error."""
    plan = next(iter(plans.values()))
    variables = attempt.variables(plan) if teacher is None else attempt.model.variables
    dense = Values.of(variables)
    best: Values | None = None
    results: dict[str, tuple[float | None, dict[int, Outcome]]] = {}
    chosen = ""
    shown = progress and attempt.calibrated is not None
    title, total = f"pruning {attempt.model.name}", attempt.steps(plan) * len(plans)
    total += 0 if teacher is None else teacher.epochs
    distillation = None
    try:
        with show_progress(title, total, shown=shown) as announce:
            for name, candidate in plans.items():
                if results:
                    dense.restore()
                outcomes = attempt.go(candidate, dense, announce)
                divergence = attempt.divergence()
                if not results or (divergence or 0.0) < (results[chosen][0] or 0.0):
                    chosen = name
                    best = Values.of(variables) if len(plans) > 1 else None
                results[name] = divergence, outcomes
            if best is not None:
                best.restore()
            if teacher is not None:
                distillation = _distilled(attempt, teacher, results[chosen][0] or 0.0, announce)
    except BaseException:
        dense.restore()
        raise
    candidates = tuple(
        Candidate(name, float(divergence or 0.0), name == chosen)
        for name, (divergence, _) in results.items()
        if name
    )
    outcomes, divergence = results[chosen][1], results[chosen][0]
    if distillation is not None and distillation.kept:
        divergence = distillation.after
    return _Found(outcomes, divergence, candidates, distillation)


def _distilled(
    attempt: Attempt, teacher: Teacher, before: float, announce: Announce
) -> Distillation:
    """Train the model by the outputs it had, unless that makes them worse where it was not."""
    refitted = Values.of(attempt.model.variables)
    with undisturbed(attempt.model):
        teacher.teach(attempt.model, announce)
    told = Distillation(teacher.epochs, before, attempt.divergence() or 0.0)
    if not told.kept:
        refitted.restore()
    return told


def _chosen_by(criterion: Any) -> str:
    """What chooses the masks while it goes through the layers; empty if nothing does."""
    if not isinstance(criterion, str):
        return ""
    if criterion not in ("refit", "sparsegpt"):
        raise ValueError(
            "`criterion` must be a function such as kp.criteria.magnitude or kp.criteria.wanda, "
            f'"refit" or "sparsegpt". Received: criterion={criterion!r}.'
        )
    return criterion


def _candidates(criterion: Any) -> dict[str, tuple[Any, Any]]:
    return {
        "lamp": ("lamp", criterion),
        "erk": ("erk", criterion),
        "uniform, Wanda per output": ("uniform", PerOutput(wanda)),
    }


def _sparsity_for(sparsity: float | None, pattern: Pattern) -> float:
    """The overall sparsity, in view of a pattern's own."""
    if sparsity is not None:
        check_sparsity("sparsity", sparsity)
    settled = settle_sparsity("sparsity", sparsity, pattern)
    if settled is None:
        raise ValueError(
            "`sparsity` is missing: give the fraction of weights to set to zero. "
            "Received: sparsity=None. For 80% zeros pass 0.8."
        )
    return float(settled)


def _check_without_calibration(
    allocation: Any, criterion: Any, samples: int | None, stages: int, distillation_epochs: int
) -> None:
    needs = {
        'allocation="auto"': isinstance(allocation, str) and allocation == "auto",
        f"criterion={getattr(criterion, '__name__', criterion)}": needs_inputs(criterion)
        or _chosen_by(criterion) != "",
        f"samples={samples}": samples is not None,
        f"stages={stages}": stages > 1,
        f"distillation_epochs={distillation_epochs}": distillation_epochs > 0,
    }
    for said, needed in needs.items():
        if needed:
            raise ValueError(
                f"`calibration` is needed for {said}. Received: calibration=None. Pass a few "
                "hundred of the model's inputs."
            )


def _check_trainable(plan: Plan) -> None:
    if all(target.index is None for target in plan.targets):
        raise ValueError(
            "`distillation_epochs` trains the weights that are left, and all that are pruned are "
            "frozen. Set their layers' `trainable` to True, or leave it out."
        )


def _check_sparsegpt(*, refit: bool, stages: int, auto: bool) -> None:
    said = {"refit=False": not refit, f"stages={stages}": stages > 1, 'allocation="auto"': auto}
    for argument, given in said.items():
        if given:
            raise ValueError(
                '`criterion` "sparsegpt" updates the weights itself, in one pass with one '
                f"allocation. Received: {argument}. Leave that out, or use another criterion."
            )


def _check_patterns(plan: Plan) -> None:
    for target in plan.targets:
        if not isinstance(target.pattern, Unstructured | NM):
            raise ValueError(
                '`criterion` "sparsegpt" is for unstructured zeros and N:M. Received: '
                f"pattern={target.pattern!r} for {target.path}. Use magnitude or wanda, with a "
                "refit."
            )


def _copy_of(model: keras.Model) -> keras.Model:
    try:
        with warnings.catch_warnings():
            if not getattr(getattr(model, "optimizer", None), "built", False):
                # It has nothing to copy yet, and Keras builds that of the copy first.
                warnings.filterwarnings("ignore", "Skipping variable loading for optimizer")
            return copying.deepcopy(model)
    except Exception as error:
        raise ValueError(
            f"`copy` needs a model that Keras can save and load, and {model.name!r} is not one. "
            "Received: copy=True. Make the copy yourself, or pass copy=False and keep "
            f"`model.get_weights()` to go back. Keras says:\n{error}"
        ) from error


def _report(model: keras.Model, plan: Plan, found: _Found, seconds: float) -> PruneReport:
    rows, zeros, total = [], 0, 0
    for target, variable in zip(plan.targets, plan.variables, strict=True):
        values = backends.current().to_numpy(variable)
        gone = values.size - int(np.count_nonzero(values))
        outcome = found.outcomes.get(id(variable), Outcome())
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
    return PruneReport(
        zeros / total,
        tuple(rows),
        plan.skipped,
        found.divergence,
        found.candidates,
        found.distillation,
        seconds,
        model,
    )
