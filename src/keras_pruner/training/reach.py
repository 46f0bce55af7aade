"""Whether a training comes to what its schedule asks for, and what is said where it does not."""

import warnings

import keras

from keras_pruner.schedules import Schedule

PATIENCE = 100
"""Calls of `update` without a step between them, after which it says so."""


def check_length(schedule: Schedule, given: Schedule, now: int, updates: int | None) -> None:
    """Say before a training if it is too short for its schedule.

    Args:
        schedule: with everything settled.
        given: as the user gave it.
        now: the step at which the training begins.
        updates: how many updates of the weights it makes; None if nobody knows.

    Raises:
        ValueError: if nothing would be pruned at all.
    """
    if updates is None or schedule.end_step is None:
        return
    last = now + updates
    if last < schedule.begin_step:
        raise ValueError(
            f"Nothing would be pruned: the schedule begins at step {schedule.begin_step}, and "
            f"this training ends at step {last}. Received: schedule={given!r}. Begin earlier, or "
            "train for longer."
        )
    if last < schedule.end_step:
        warnings.warn(
            f"The training is too short for the schedule: it ends at step {last}, at a sparsity "
            f"of {schedule.sparsity_at(last):.4g}, and the schedule needs {schedule.end_step} "
            f"steps to reach {schedule.sparsity_at_end:.4g}. Train for longer, end the schedule "
            "earlier, or call `fit` again with the same callback.",
            stacklevel=3,
        )


def check_begin(schedule: Schedule, given: Schedule, name: str, sparsity: float) -> None:
    """Say it if a schedule begins below the sparsity that the model of this name has."""
    if 0 < schedule.sparsity_at(schedule.begin_step) < sparsity - 0.01:
        warnings.warn(
            f"{name!r} has a sparsity of {sparsity:.4g} already, and the schedule begins below "
            f"it: zeros will come to life again. Received: schedule={given!r}. To train on with "
            "all zeros kept, use kp.KeepZeros().",
            stacklevel=3,
        )


def skips_steps(model: keras.Model) -> bool:
    """Whether a loss scale may have skipped all steps that a model has made.

    One that is not what it was at first is one that the model trains with.
    """
    optimizer = model.optimizer
    if not (isinstance(optimizer, keras.optimizers.LossScaleOptimizer) and optimizer.built):
        return False
    return float(keras.ops.convert_to_numpy(optimizer.dynamic_scale)) != optimizer.initial_scale


def check_goes_on(name: str, reached: float, sparsity: float) -> None:
    """Say it if a pruning goes on from its end on a model that has lost the zeros of it."""
    if sparsity < reached / 2:
        warnings.warn(
            f"The schedule of this callback has ended, at a sparsity of {reached:.4g}, and "
            f"{name!r} now has {sparsity:.4g}: it is pruned at once. If it begins anew, as in the "
            "next fold of a cross-validation, make a new callback: kp.GradualPruning(...).",
            stacklevel=3,
        )


def refuse_steps_that_do_not_prune() -> None:
    """Raise: steps are counted, and the wrapped optimizer has made none of them."""
    raise RuntimeError(
        "The optimizer makes steps that do not prune: it is the one within, not the wrapped one, "
        "that trains the model. Train with what `pruner.wrap(optimizer)` returned: "
        "`model.compile(pruner.wrap(optimizer), ...)`."
    )


def refuse_to_be_traced() -> None:
    """Raise: `update` is called in a compiled step."""
    raise RuntimeError(
        "`update` chooses which weights to prune by looking at them, and here a step is being "
        "traced. Call it outside of the compiled step, before it."
    )


def refuse_traced_values() -> None:
    """Raise: `stateless_update` is called in a compiled step."""
    raise ValueError(
        "`stateless_update` chooses which weights to prune by looking at them, and these are "
        "being traced. Call it outside of the jitted step, before it."
    )


def warn_of_no_steps(calls: int) -> None:
    """Say that `update` is called again and again, and no step is counted."""
    warnings.warn(
        f"`update` was called more than {calls} times, and the wrapped optimizer has counted "
        "no step, so that nothing is pruned. In a stateless loop on JAX call `stateless_update`; "
        "if the model is trained by another optimizer, wrap that one.",
        stacklevel=3,
    )
