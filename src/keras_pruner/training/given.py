"""What a user gives to a training, read and checked: rules, and a schedule."""

from collections.abc import Sized
from typing import Any

from keras_pruner.criteria import needs_inputs
from keras_pruner.patterns import FixedPattern, Pattern, settle_sparsity
from keras_pruner.rules import Rules
from keras_pruner.schedules import ConstantSparsity, Schedule, as_schedule


def rules_of_training(
    pattern: Pattern, allocation: Any, criterion: Any, filters: Any, overrides: Any
) -> Rules:
    """The rules that the user gave for a training, where a criterion sees the weights alone."""
    if needs_inputs(criterion):
        name = getattr(criterion, "__name__", criterion)
        raise ValueError(
            "`criterion` must be a function of the weights alone in training, and this one wants "
            f"their inputs, too. Received: criterion={name}. Prune at once with "
            "`kp.prune(model, sparsity, calibration=samples, criterion=...)`, and train on with "
            "kp.KeepZeros()."
        )
    return Rules(pattern, allocation, criterion, filters, overrides)


def refuse_other_plan(name: str, rules: Rules) -> None:
    """Raise: without a schedule the model's own pruning goes on, and these rules are others."""
    raise ValueError(
        f"`schedule` is missing, and {name!r} is being pruned by another plan than that of these "
        f"arguments. Received: {rules!r}. Leave them out to go on with the pruning that the model "
        "carries, or give a schedule to begin anew."
    )


def check_values(trainable: Sized, optimizers: Sized, variables: tuple[Sized, Sized]) -> None:
    """Raise unless there is a value for each trainable variable, and each of the optimizer's."""
    given, expected = (len(trainable), len(optimizers)), tuple(map(len, variables))
    if given != expected:
        raise ValueError(
            "`stateless_update` takes the values of `model.trainable_variables` and of the wrapped "
            "optimizer's `variables`, the masks among them. Received: {} and {} values, for {} and "
            "{} variables. Pass [v.value for v in optimizer.variables] of "
            "`optimizer = pruner.wrap(...)`.".format(*given, *expected)
        )


def schedule_for(schedule: Any, pattern: Pattern) -> Schedule:
    """The schedule meant by what the user gave, and by a pattern that fixes the sparsity."""
    fixed = pattern.sparsity if isinstance(pattern, FixedPattern) else None
    if schedule is None:
        if fixed is None:
            raise ValueError(
                "`schedule` is missing: give the fraction of zeros to end with, or a schedule. "
                "Received: schedule=None. For 80% zeros pass 0.8."
            )
        return ConstantSparsity(fixed)
    schedule = as_schedule(schedule)
    settle_sparsity("schedule", schedule.sparsity_at_end, pattern)
    return schedule
