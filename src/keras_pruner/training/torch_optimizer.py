"""Masks for an optimizer of `torch.optim`: the same part as `PrunedOptimizer`, played by hooks."""

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
import torch

from keras_pruner.backends import torch as torch_backend
from keras_pruner.masks import MaskedWeight
from keras_pruner.plan import Plan
from keras_pruner.schedules import Schedule
from keras_pruner.training.optimizer import UNATTENDED, warn_of_untrained
from keras_pruner.training.progress import Progress
from keras_pruner.training.state import load_state, save_state

KEY = "keras_pruner"
"""Where the pruning state stands in the optimizer's `state_dict`."""

ENTRY_BY_ENTRY = (
    torch.optim.SGD,
    torch.optim.Adam,
    torch.optim.AdamW,
    torch.optim.NAdam,
    torch.optim.RAdam,
    torch.optim.RMSprop,
    torch.optim.Adagrad,
)
"""As `keras_pruner.training.slots.ENTRY_BY_ENTRY`: gradients of pruned weights need no mask."""


class TorchOptimizerMasks:
    """Leaves every pruned weight at exactly 0.0 after each step of a `torch.optim` optimizer.

    The optimizer stays what it is. Hooks zero the pruned weights after its step, and hide their
    gradients from it if they could have a part in the update of others; its `state_dict` carries
    the masks and the count, in bits.

    Args:
        optimizer: the user's optimizer.
        schedule: as the user gave it.
        plan: what is pruned; its variables are those of the model.
    """

    built = True
    is_readable = True
    gradient_accumulation_steps = None  # the loop's own matter

    def __init__(self, optimizer: torch.optim.Optimizer, schedule: Schedule, plan: Plan) -> None:
        hooks = optimizer._optimizer_step_post_hooks.values()
        if any(isinstance(getattr(hook, "__self__", None), TorchOptimizerMasks) for hook in hooks):
            raise ValueError(
                "`optimizer` is wrapped for pruning already, and once is enough. Received: "
                f"{type(optimizer).__name__} with the hooks of another `kp.Pruner`. Go on with "
                "that pruner, or call its `release()` first."
            )
        self.inner_optimizer = optimizer
        self.schedule = schedule
        self.plan = plan
        self.progress = Progress()
        self.attended = False
        self.loads = 0
        self.applied = True  # hooks cannot be passed by
        self.completed_updates = 0
        self.masked = tuple(
            MaskedWeight(target, variable, _all_true(variable), (), ())
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
        self._apart = type(optimizer) in ENTRY_BY_ENTRY
        self._hooks = [
            optimizer.register_step_pre_hook(self._before_step),
            optimizer.register_step_post_hook(self._after_step),
            optimizer.register_state_dict_post_hook(self._save),
            optimizer.register_load_state_dict_pre_hook(self._load),
        ]

    def peek(self) -> Progress:
        """The progress."""
        return self.progress

    @property
    def finished(self) -> bool:
        """Whether the masks have come to the end of the schedule."""
        return self.progress.has_ended(self.schedule)

    def zero_pruned(self) -> None:
        """Set every pruned weight to 0.0."""
        for masked in self.masked:
            torch_backend.zero([masked.variable.value], masked.mask.value)

    def zero_companions(self) -> None:
        """As `PrunedOptimizer.zero_companions`; an optimizer of PyTorch keeps no averages."""
        for masked in () if self._apart else self.masked:
            weight = masked.variable.value
            slots = [s for s in self.inner_optimizer.state[weight].values() if _like(s, weight)]
            torch_backend.zero(slots, masked.mask.value)

    def release(self) -> None:
        """Take the hooks off the optimizer."""
        for hook in self._hooks:
            hook.remove()

    def _before_step(self, *_: Any) -> None:
        if not self.attended:
            raise RuntimeError(UNATTENDED)
        for masked in () if self._apart else self.masked:
            gradient = masked.variable.value.grad
            if gradient is not None:
                torch_backend.zero([gradient], masked.mask.value)

    def _after_step(self, *_: Any) -> None:
        self.completed_updates += 1
        self.zero_pruned()

    def _save(self, _: Any, state: dict[str, Any]) -> dict[str, Any]:
        arrays: dict[str, np.ndarray] = {}
        save_state(self, arrays)
        tensors = {key: torch.from_numpy(array) for key, array in arrays.items()}
        return {**state, KEY: {**tensors, "completed_updates": self.completed_updates}}

    def _load(self, _: Any, state: Mapping[str, Any]) -> dict[str, Any]:
        mine = dict(state.get(KEY, {}))
        completed = mine.pop("completed_updates", 0)
        self.progress = load_state(self, {k: v.cpu().numpy() for k, v in mine.items()})
        self.completed_updates = completed
        self.loads += 1
        return {key: value for key, value in state.items() if key != KEY}


def _all_true(variable: keras.Variable) -> keras.Variable:
    return keras.Variable(np.ones(variable.shape, bool), dtype="bool", trainable=False)


def _like(slot: Any, weight: torch.Tensor) -> bool:
    return isinstance(slot, torch.Tensor) and slot.shape == weight.shape
