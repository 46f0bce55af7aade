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


def refuse_steps_that_do_not_prune() -> None:
    """Raise: steps are counted, and the wrapped optimizer has made none of them."""
    raise RuntimeError(
        "The optimizer makes steps that do not prune: it is the one within, not the wrapped one, "
        "that trains the model. Train with what `pruner.wrap(optimizer)` returned: "
        "`model.compile(pruner.wrap(optimizer), ...)`."
    )


def warn_of_no_steps() -> None:
    """Say that `update` is called again and again, and no step is counted."""
    warnings.warn(
        f"`update` was called more than {PATIENCE} times, and the wrapped optimizer has counted "
        "no step, so that nothing is pruned. In a stateless loop on JAX call `stateless_update`; "
        "if the model is trained by another optimizer, wrap that one.",
        stacklevel=3,
    )
