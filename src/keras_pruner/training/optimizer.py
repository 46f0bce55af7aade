"""The wrapped optimizer: the user's own, and after each of its steps the masks."""

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np

from keras_pruner import backends
from keras_pruner.masks import MaskedWeight
from keras_pruner.plan import Plan, Target
from keras_pruner.schedules import Schedule
from keras_pruner.training.progress import Progress
from keras_pruner.training.slots import entries_are_apart, slots_of
from keras_pruner.training.state import load_state, save_state
from keras_pruner.validation import PACKAGE, shown

UNATTENDED = (
    "This optimizer was wrapped for pruning, but nobody updates its masks: the training would "
    "stay dense. Call `pruner.update()` first thing in every step, or train with "
    "`fit(..., callbacks=[kp.GradualPruning(...)])`. To train without pruning, call "
    "`pruner.release()`, or `kp.Pruner(model).release()`."
)


def warn_of_untrained(paths: Sequence[str]) -> None:
    """Say which targets stay as they are, because the optimizer does not train them."""
    if paths:
        warnings.warn(
            f"The optimizer trains only a part of the weights to prune; {list(paths)} stay as they "
            "are, and are not counted in the sparsity. Give it all of the model's trainable "
            "weights, or leave these out with `filters` or `overrides`.",
            stacklevel=4,
        )


@keras.saving.register_keras_serializable(PACKAGE)
class PrunedOptimizer(keras.optimizers.Optimizer):
    """An optimizer that leaves every pruned weight at exactly 0.0.

    It lets the user's optimizer make its step and zeroes the pruned weights after it, all inside
    the compiled step. From an optimizer in which one entry has a part in another's update, it
    hides their gradients, and zeroes their slots when masks change: the live weights are trained
    as if the others were not there, under every optimizer.
    The masks are its variables, so they are saved, restored, replicated and sharded as any
    optimizer's state. It never changes a mask itself: that is the `Pruner`'s part.

    Args:
        inner_optimizer: the user's optimizer.
        schedule: as the user gave it; what training settled of it is in `progress`.
        find_plan: gives the plan, once the model has variables.
    """

    built: bool

    def __init__(
        self,
        inner_optimizer: keras.optimizers.Optimizer,
        schedule: Schedule,
        find_plan: Callable[[], Plan],
        name: str = "pruned",
    ) -> None:
        super().__init__(learning_rate=0.0, name=name)
        self.inner_optimizer = inner_optimizer
        self.use_ema = inner_optimizer.use_ema
        self.gradient_accumulation_steps = inner_optimizer.gradient_accumulation_steps
        self.schedule = schedule
        self.masked: tuple[MaskedWeight, ...] = ()
        self.before_first_step: Callable[[], Any] | None = None
        self.attended = False
        self.loads = 0
        self.applied = False  # in this process, be it in a trace
        self._reached = Progress()  # as `progress`, where that cannot be read
        self._find_plan = find_plan
        self._plan: Plan | None = None

    @property
    def plan(self) -> Plan:
        """What is pruned; found when first asked for."""
        if self._plan is None:
            self._plan = self._find_plan()
        return self._plan

    @property
    def own_optimizer(self) -> keras.optimizers.Optimizer:
        """The user's own, however many wrappers there are around it."""
        inner = self.inner_optimizer
        return inner.own_optimizer if isinstance(inner, PrunedOptimizer) else inner

    @property
    def variables(self) -> list[keras.Variable]:
        """The user's optimizer's variables, the masks, and the progress."""
        if not self.built:
            return self.inner_optimizer.variables
        own = [masked.mask for masked in self.masked]
        return [*self.inner_optimizer.variables, *own, self._progress]

    def build(self, variables: Sequence[keras.Variable]) -> None:
        """Make a mask, all True, for each target among `variables`."""
        variables = list(variables)
        if self.built or not variables:  # Keras builds with none when it loads an `.h5` file
            return
        if not self.inner_optimizer.built:
            self.inner_optimizer.build(variables)
        self._trainable_variables = variables
        self._progress = self.add_variable(
            (len(Progress._fields),),
            keras.initializers.Constant(-1),  # an assignment would be lost in a trace
            "int32",
            "only_first_replica",
            name="progress",
        )
        slots = slots_of(self.inner_optimizer, variables)
        averages = self._model_variables_moving_average if self.use_ema else None
        position = {id(variable): i for i, variable in enumerate(variables)}
        masked = []
        bound = self._bind(variables)
        warn_of_untrained([t.path for t, variable in bound if id(variable) not in position])
        for target, variable in bound:
            index = position.get(id(variable))
            if index is None:
                continue
            mask = self.add_variable(
                variable.shape,
                "ones",
                "bool",
                layout=getattr(variable, "_layout", None),
                name=f"{variable.path.replace('/', '_')}_mask",
            )
            average = averages[index] if averages else None
            mine = () if average is None else (average,)
            masked.append(MaskedWeight(target, variable, mask, mine, tuple(slots[index])))
        self.masked = tuple(masked)
        self._masks = {self._var_key(m.variable): m.mask for m in masked}
        self._apart = entries_are_apart(self.inner_optimizer, [m.variable for m in masked])
        self.built = True

    def _bind(self, variables: list[keras.Variable]) -> list[tuple[Target, keras.Variable]]:
        """Each target with its variable: the plan's own, or by position after loading."""
        plan = self.plan
        if plan.variables:
            return list(zip(plan.targets, plan.variables, strict=True))
        bound = [(t, variables[t.index]) for t in plan.targets if t.index is not None]
        for target, variable in bound:
            if tuple(variable.shape) != target.shape:
                raise ValueError(
                    f"The pruning state belongs to another model: {target.path} was of shape "
                    f"{target.shape}, and here is {variable.path} of shape {variable.shape}."
                )
        return bound

    # ---------------------------------------------------------------- the training step

    def apply(
        self, grads: Sequence[Any], trainable_variables: Sequence[keras.Variable] | None = None
    ) -> None:
        """Make one step of the user's optimizer that leaves the pruned weights at zero."""
        self.applied = True
        if not self.built:
            with keras.name_scope(self.name, caller=self):
                self.build(trainable_variables or ())
        if self.before_first_step is not None:
            self.before_first_step()
        self._check_attended()
        if not self._apart:
            grads = self._live(grads, trainable_variables or self._trainable_variables)
        # Where an update is the last that is written to a weight, it may as well zero it.
        masks = self._masks if self._apart and not self.use_ema else {}
        with backends.current().masking_updates(self.inner_optimizer, masks) as zeroed:
            self.inner_optimizer.apply(grads, trainable_variables)
        self._zero(
            lambda m: () if self._var_key(m.variable) in zeroed else (m.variable, *m.averages)
        )

    def _live(self, grads: Sequence[Any], variables: Sequence[keras.Variable]) -> list[Any]:
        """The gradients, with zeros where weights are pruned."""
        mask_gradient = backends.current().mask_gradient
        masks = [self._masks.get(self._var_key(variable)) for variable in variables]
        return [
            gradient if gradient is None or mask is None else mask_gradient(gradient, mask)
            for gradient, mask in zip(grads, masks, strict=True)
        ]

    def zero_pruned(self) -> None:
        """Set every pruned weight and its average to 0.0."""
        self._zero(lambda masked: (masked.variable, *masked.averages))

    def zero_companions(self) -> None:
        """Set to 0.0 what the optimizer keeps for pruned weights: averages, and slots that matter.

        Slots matter where they could have a part in the update of other weights.
        """
        self._zero(lambda masked: masked.averages + (() if self._apart else masked.slots))

    def _zero(self, which: Callable[[MaskedWeight], tuple[keras.Variable, ...]]) -> None:
        pairs = [(variable, masked.mask) for masked in self.masked for variable in which(masked)]
        backends.current().zero_pruned([v for v, _ in pairs], [m for _, m in pairs])

    def finalize_variable_values(self, var_list: Sequence[keras.Variable]) -> None:
        """Let the user's optimizer write its averages into the model, sparse.

        Keras calls this after a step that failed, too. JAX has given the weights away by then, and
        to look for them here would hide what failed.
        """
        if not all(map(backends.current().has_value, var_list)):
            return
        self.inner_optimizer.finalize_variable_values(var_list)
        self.zero_pruned()
        if self.applied:  # else what failed before the first step would be hidden
            self._check_attended()  # a compiled step does not do it again

    def _check_attended(self) -> None:
        """Refuse to train on, dense and in silence, when nobody updates the masks."""
        if self.attended or self._reached.has_ended(self.schedule):
            return
        if self._reached.updated_at < 0:
            raise RuntimeError(UNATTENDED)
        self.attended = True
        warnings.warn(
            "This model carries an unfinished pruning schedule that nobody advances: its zeros "
            "stay, but no more are made. To go on, pass the callback it was trained with to "
            "`fit`, or call `kp.Pruner(model).update()` in every step; to end it, call "
            "`kp.Pruner(model).release()`.",
            stacklevel=2,
        )

    # What Keras' trainers and callbacks ask an optimizer for, answered by the user's own.

    @property
    def iterations(self) -> keras.Variable:
        """Updates of the weights in the lifetime of the user's optimizer."""
        return self.inner_optimizer.iterations

    @property
    def learning_rate(self) -> Any:
        """The user's optimizer's; can be set."""
        return self.inner_optimizer.learning_rate

    @learning_rate.setter
    def learning_rate(self, learning_rate: Any) -> None:
        self.inner_optimizer.learning_rate = learning_rate

    @property
    def _model_variables_moving_average(self) -> list[keras.Variable]:
        return self.inner_optimizer._model_variables_moving_average

    def apply_gradients(self, grads_and_vars: Any) -> keras.Variable:
        """As `apply`, for (gradient, variable) pairs; returns the count of updates."""
        super().apply_gradients(grads_and_vars)
        return self.iterations

    def exclude_from_weight_decay(self, var_list: Any = None, var_names: Any = None) -> None:
        """As the user's optimizer does it.

        Raises:
            ValueError: if the optimizer has its variables already, as it has after `wrap`.
        """
        if self.inner_optimizer.built:
            raise ValueError(
                "`exclude_from_weight_decay` must be called before the optimizer is wrapped, which "
                "makes its variables. Received: var_list="
                f"{shown(var_list)}, var_names={var_names!r}. First "
                "`optimizer.exclude_from_weight_decay(...)`, then `pruner.wrap(optimizer)`."
            )
        self.inner_optimizer.exclude_from_weight_decay(var_list, var_names)

    def scale_loss(self, loss: Any) -> Any:
        """As the user's optimizer scales it."""
        return self.inner_optimizer.scale_loss(loss)

    # What is saved.

    @property
    def progress(self) -> Progress:
        """How far the schedule has come."""
        return Progress(*map(int, keras.ops.convert_to_numpy(self._progress)))

    @progress.setter
    def progress(self, progress: Progress) -> None:
        self._progress.assign(np.array(progress, np.int32))
        self._reached = progress

    @property
    def has_begun(self) -> bool:
        """Whether the schedule has begun to count."""
        return self.built and self.progress.origin >= 0

    @property
    def finished(self) -> bool:
        """Whether the masks have come to the end of the schedule."""
        return self.built and self.progress.has_ended(self.schedule)

    @property
    def is_readable(self) -> bool:
        """Whether the progress can be looked at now."""
        return backends.current().is_readable(self._progress.value)

    def peek(self) -> Progress | None:
        """The progress, if it can be had without waiting for a step."""
        found = backends.current().peek(self._progress)
        return None if found is None else Progress(*found)

    @property
    def completed_updates(self) -> int:
        """Updates of the weights in the lifetime of the user's optimizer."""
        return int(keras.ops.convert_to_numpy(self.iterations))

    def save_own_variables(self, store: Any) -> None:
        """Save the masks, one bit a weight; the user's optimizer saves its own variables."""
        if not self.built:
            return
        save_state(self, store)
        # Keras' optimizers tell a state of theirs by the number of its entries alone.
        if len(store.keys()) == len(self.own_optimizer.variables):
            store["filler"] = np.zeros(1, np.uint8)

    def load_own_variables(self, store: Any) -> None:
        """Load what `save_own_variables` saved.

        Raises:
            ValueError: if the file has no pruning state, or that of another plan.
        """
        self.progress = load_state(self, store)
        self.loads += 1

    def get_config(self) -> dict[str, Any]:
        """The user's optimizer, the schedule as given, and the plan."""
        plan = self.plan
        return {
            "name": self.name,
            "inner_optimizer": self.inner_optimizer,
            "schedule": self.schedule,
            "targets": list(plan.targets),
            "allocation": plan.allocation,
            "criterion": plan.criterion,
            "groups": list(plan.groups),
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> "PrunedOptimizer":
        """Make the optimizer again; its targets find their variables by position."""
        config = dict(config)
        inner = keras.optimizers.deserialize(config.pop("inner_optimizer"), custom_objects)
        parts = keras.saving.deserialize_keras_object(config, custom_objects=custom_objects)
        allocation, criterion = map(_function, (parts["allocation"], parts["criterion"]))
        groups = tuple(parts["groups"])
        plan = Plan(tuple(parts["targets"]), (), (), allocation, criterion, groups)
        return cls(inner, parts["schedule"], lambda: plan, parts["name"])


def _function(function: Any) -> Any:
    """A function, or the one of this package that an `.h5` file names."""
    if not isinstance(function, str):
        return function
    return keras.saving.get_registered_object(f"{PACKAGE}>{function.split('>')[-1]}")


def check_wrappable(optimizer: Any, *, used: bool) -> None:
    """Raise unless a pruner, which may have been used already, can wrap `optimizer`."""
    if isinstance(optimizer, PrunedOptimizer):
        raise ValueError(
            "`optimizer` is wrapped for pruning already, and once is enough. Received: "
            f"optimizer={optimizer.name!r} around {optimizer.inner_optimizer.name!r}. "
            "Pass the inner one, or use the wrapped one as it is."
        )
    if used:
        raise ValueError(
            "This pruner has wrapped an optimizer already, and its masks are there. Received: "
            f"a second one, {type(optimizer).__name__}. Make another `kp.Pruner` for it, or "
            "call `release()` first."
        )
    is_own = backends.current().is_own_optimizer(optimizer)
    if not (is_own or isinstance(optimizer, keras.optimizers.Optimizer)):
        raise ValueError(
            "`optimizer` must be a Keras optimizer, or with the torch backend one of torch.optim. "
            f"Received: an object of type {type(optimizer).__module__}.{type(optimizer).__name__}. "
            "From a name Keras makes one: `keras.optimizers.get('adam')`."
        )


# -------------------------------------------------------------------- in a model


def find(model: keras.Model) -> PrunedOptimizer | None:
    """The wrapped optimizer that a model is compiled with, if it is."""
    optimizer = getattr(model, "optimizer", None)
    if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        optimizer = optimizer.inner_optimizer
    return optimizer if isinstance(optimizer, PrunedOptimizer) else None


def wrappers(model: keras.Model) -> list[PrunedOptimizer]:
    """The wrapped optimizers around the user's own, outermost first; one for each schedule."""
    found, optimizer = [], find(model)
    while isinstance(optimizer, PrunedOptimizer):
        found.append(optimizer)
        optimizer = optimizer.inner_optimizer
    return found


def install(model: keras.Model, optimizer: keras.optimizers.Optimizer) -> None:
    """Make `optimizer` the one that the model trains and is saved with.

    A `LossScaleOptimizer` stays outside. The compile configuration names what the model trains
    with, or a saved file would lose its state; the compiled step is dropped, for it holds the old
    one.
    """
    if isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer):
        model.optimizer.inner_optimizer = optimizer
    else:
        model.optimizer = optimizer
    model._compile_config.config["optimizer"] = model.optimizer
    model.train_function = None
    backends.current().forget_step(model)
