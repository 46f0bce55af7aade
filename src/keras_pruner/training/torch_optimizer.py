"""Masks for an optimizer of `torch.optim`, put on by hooks."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
import torch

from keras_pruner.backends import torch as torch_backend
from keras_pruner.masks import MaskedWeight
from keras_pruner.plan import Plan
from keras_pruner.schedules import Schedule
from keras_pruner.training.checkpoint import (
    PruningState,
    Unattended,
    load_pruning,
    save_pruning,
)
from keras_pruner.training.optimizer import UNATTENDED, warn_of_untrained

KEY = "keras_pruner"
"""Where the pruning state stands in the optimizer's `state_dict`."""

ELEMENTWISE = (
    torch.optim.SGD,
    torch.optim.Adam,
    torch.optim.AdamW,
    torch.optim.NAdam,
    torch.optim.RAdam,
    torch.optim.RMSprop,
    torch.optim.Adagrad,
)
"""Like `optimizer_slots.ELEMENTWISE`: the gradients of pruned weights need no mask."""


class TorchPruning:
    """A `Pruning` on an optimizer of `torch.optim`, which stays what it is.

    Hooks zero the pruned weights after its step, and hide their gradients from it if they could
    have a part in the update of others; its `state_dict` carries masks and count.

    Args:
        optimizer: the user's optimizer.
        schedule: as the user gave it.
        plan: what is pruned; its variables are those of the model.
    """

    built = True
    is_readable = True
    accumulation = 1  # the loop's own matter
    before_first_step = None

    def __init__(self, optimizer: torch.optim.Optimizer, schedule: Schedule, plan: Plan) -> None:
        hooks = optimizer._optimizer_step_post_hooks.values()
        if any(isinstance(getattr(hook, "__self__", None), TorchPruning) for hook in hooks):
            raise ValueError(
                "`optimizer` is wrapped for pruning already, and once is enough. Received: "
                f"{type(optimizer).__name__} with the hooks of another `kp.Pruner`. Go on with "
                "that pruner, or call its `release()` first."
            )
        self.optimizer = optimizer
        self.schedule = schedule
        self.plan = plan
        self.state = PruningState(schedule)
        self.unattended: Unattended = "refuse"
        self.attended_to = -1
        self.loads = 0
        self.applied = True  # hooks cannot be passed by
        self.iterations = 0
        self.masked = tuple(
            MaskedWeight(target, variable, _all_true(variable))
            for target, variable in zip(plan.targets, plan.variables, strict=True)
            if any(variable.value is p for group in optimizer.param_groups for p in group["params"])
        )
        if not self.masked:
            raise ValueError(
                "The optimizer trains none of the weights to prune. Received: `optimizer` with "
                f"{sum(len(group['params']) for group in optimizer.param_groups)} parameters, none "
                f"of which is one of {[target.path for target in plan.targets]}. Give it "
                "`model.parameters()`. FSDP replaces the parameters by others that Keras' layers "
                "do not compute with, so that it cannot train Keras models, pruned or dense."
            )
        held = {masked.target for masked in self.masked}
        warn_of_untrained([target.path for target in plan.targets if target not in held])
        self._is_elementwise = type(optimizer) in ELEMENTWISE
        self._hooks = [
            optimizer.register_step_pre_hook(self._before_step),
            optimizer.register_step_post_hook(self._after_step),
            optimizer.register_state_dict_post_hook(self._save),
            optimizer.register_load_state_dict_pre_hook(self._load),
        ]

    def peek(self) -> list[int]:
        """The state's numbers."""
        return self.state.settled_numbers()

    def zero_pruned(self) -> None:
        """Set every pruned weight to 0.0."""
        for masked in self.masked:
            torch_backend.zero([masked.variable.value], masked.mask.value)

    def zero_companions(self) -> None:
        """Set to 0.0 the slots that matter; an optimizer of PyTorch keeps no averages."""
        for masked in () if self._is_elementwise else self.masked:
            weight = masked.variable.value
            slots = [s for s in self.optimizer.state[weight].values() if _like(s, weight)]
            torch_backend.zero(slots, masked.mask.value)

    def release(self) -> None:
        """Take the hooks off the optimizer."""
        for hook in self._hooks:
            hook.remove()

    def _before_step(self, *_: Any) -> None:
        if self.unattended == "refuse":
            raise RuntimeError(UNATTENDED)
        for masked in () if self._is_elementwise else self.masked:
            gradient = masked.variable.value.grad
            if gradient is not None:
                torch_backend.zero([gradient], masked.mask.value)

    def _after_step(self, *_: Any) -> None:
        self.iterations += 1
        if self.state.has_begun:
            self.state = dataclasses.replace(self.state, step=self.state.step + 1)
        self.zero_pruned()

    def _save(self, _: Any, state: dict[str, Any]) -> dict[str, Any]:
        arrays = save_pruning(self)
        return {**state, KEY: {key: torch.from_numpy(array) for key, array in arrays.items()}}

    def _load(self, _: Any, state: Mapping[str, Any]) -> dict[str, Any]:
        load_pruning(self, {k: v.cpu().numpy() for k, v in state.get(KEY, {}).items()})
        return {key: value for key, value in state.items() if key != KEY}


def _all_true(variable: keras.Variable) -> keras.Variable:
    return keras.Variable(np.ones(variable.shape, bool), dtype="bool", trainable=False)


def _like(slot: Any, weight: torch.Tensor) -> bool:
    return isinstance(slot, torch.Tensor) and slot.shape == weight.shape
