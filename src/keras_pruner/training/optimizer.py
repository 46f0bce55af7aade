"""The pruned optimizer: the user's own object, of a class that zeroes pruned weights in each step.

As `torch.nn.utils.parametrize` does with modules, an optimizer that prunes is given a subclass of
its own class. It stays the same object, so everything that is read from it or written to it is
the user's: learning rate, weight decay, `get_config`, methods that a subclass overrides.

In each step it

1. raises or warns if no `Pruner` calls `update`, since the schedule would stand still;
2. zeroes the gradients of pruned weights, if they could influence the update of others;
3. makes the step of the user's optimizer;
4. zeroes the pruned weights and their moving averages;
5. counts the step, unless gradient accumulation has not completed it.

Three classes take part: `KerasPruning` is one schedule with its masks, `Prunings` holds all that
an optimizer carries and saves them, and `_Pruned` is what the optimizer's class is extended by.
"""

import contextlib
import functools
import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NoReturn

import keras
import numpy as np

from keras_pruner import backends
from keras_pruner.backends import keras_private
from keras_pruner.masks import MaskedWeight
from keras_pruner.plan import Plan, Target
from keras_pruner.schedules import ConstantSparsity, Schedule
from keras_pruner.training.checkpoint import (
    PruningState,
    Unattended,
    as_bytes,
    from_bytes,
    load_pruning,
    save_pruning,
)
from keras_pruner.training.optimizer_slots import slots_of, updates_elementwise
from keras_pruner.validation import one_line

UNATTENDED = (
    "This optimizer was wrapped for pruning, but `pruner.update()` was never called, so no weights "
    "would be pruned. Call `pruner.update()` first thing in every step, or train with "
    "`fit(..., callbacks=[kp.GradualPruning(...)])`. To train without pruning, call "
    "`pruner.release()`, or `kp.Pruner(model).release()`."
)
UNFINISHED = (
    "This model carries an unfinished pruning schedule, and this training does not advance it: "
    "its zeros stay, but no more are made. To go on, pass the callback it was trained with to "
    "`fit`, or call `kp.Pruner(model).update()` in every step; to end it, call "
    "`kp.Pruner(model).release()`."
)


class KerasPruning:
    """A `Pruning` on an optimizer of Keras.

    The masks, the count of steps and the state are variables of the optimizer, so they are
    restored, replicated and sharded like the rest of its state. The masks are updated by the
    `Pruner`, not here.

    Args:
        schedule: as the user gave it.
        find_plan: a function that returns the plan, called when the model has variables.
        name: the first part of the variables' names.
    """

    def __init__(
        self, schedule: Schedule, find_plan: Callable[[], Plan], name: str = "pruning"
    ) -> None:
        self.schedule = schedule
        self.name = name
        self.masked: tuple[MaskedWeight, ...] = ()
        self.applied = False
        self.loads = 0
        self.unattended: Unattended = "refuse"
        self.attended_to = -1
        self.before_first_step: Callable[[], Any] | None = None
        self.optimizer: Any = None  # the optimizer that carries it
        self.outer: Any = None  # the `LossScaleOptimizer` around that one, or else the same
        self._find_plan = functools.cache(find_plan)
        self._step: Any = None
        self._settled: Any = None

    @property
    def plan(self) -> Plan:
        """What is pruned; computed at the first access."""
        return self._find_plan()

    @property
    def built(self) -> bool:
        """Whether there are masks."""
        return self._step is not None

    @property
    def variables(self) -> list[keras.Variable]:
        """The masks, the count of steps, and the rest of the state."""
        own = [self._step, self._settled] if self.built else []
        return [*(masked.mask for masked in self.masked), *own]

    def build(self, optimizer: keras.optimizers.Optimizer) -> None:
        """Make a mask, all True, for each target that the optimizer trains."""
        variables = keras_private.trained_by(optimizer)
        with keras.name_scope(optimizer.name):
            self.masked = tuple(self._mask_each(optimizer, variables))
            # The values come from initializers: an assignment would be lost in a trace.
            self._step = _variable(f"{self.name}_step", (), "int", keras.initializers.Constant(-1))
            none = PruningState(self.schedule).settled_numbers()
            initial = keras.initializers.Constant(-1)
            self._settled = _variable(f"{self.name}_settled", (len(none),), "int32", initial)

    def _mask_each(
        self, optimizer: keras.optimizers.Optimizer, variables: Sequence[keras.Variable]
    ) -> Iterator[MaskedWeight]:
        slots = slots_of(optimizer, variables)
        averages = keras_private.averages_of(optimizer)
        position = {id(variable): i for i, variable in enumerate(variables)}
        bound = self._bind(variables)
        warn_of_untrained([t.path for t, variable in bound if id(variable) not in position])
        for target, variable in bound:
            index = position.get(id(variable))
            if index is None:
                continue
            average = averages[index] if averages else None
            yield MaskedWeight(
                target,
                variable,
                _mask_for(variable, f"{self.name}_{variable.path.replace('/', '_')}_mask"),
                () if average is None else (average,),
                tuple(slots[index]),
            )

    def _bind(self, variables: Sequence[keras.Variable]) -> list[tuple[Target, keras.Variable]]:
        """Each target with its variable; after loading, the one at the target's position."""
        plan = self.plan
        if plan.variables:
            return list(zip(plan.targets, plan.variables, strict=True))
        bound = [(t, variables[t.index]) for t in plan.targets if t.index is not None]
        for target, variable in bound:
            if tuple(variable.shape) != target.shape:
                raise ValueError(
                    f"The pruning state belongs to another model: {target.path} was of shape "
                    f"{target.shape}, and here is {variable.path} of shape {variable.shape}. Load "
                    "the file into a model of the same architecture."
                )
        return bound

    # ---------------------------------------------------------------- state

    @property
    def state(self) -> PruningState:
        """The progress of the schedule; can be set."""
        if not self.built:
            return PruningState(self.schedule)
        step, numbers = map(keras.ops.convert_to_numpy, (self._step, self._settled))
        return PruningState.from_numbers(self.schedule, int(step), numbers.tolist())

    @state.setter
    def state(self, state: PruningState) -> None:
        self._step.assign(state.step)
        self._settled.assign(np.array(state.settled_numbers(), np.int32))

    @property
    def is_readable(self) -> bool:
        """Whether the state can be read now, and not only be traced."""
        return backends.current().is_readable(self._step.value)

    def peek(self) -> list[int] | None:
        """The state's `settled_numbers`; None if to read them would wait for a step to end."""
        return backends.current().peek(self._settled)

    @property
    def iterations(self) -> int:
        """The optimizer's own count of its steps."""
        return int(keras.ops.convert_to_numpy(self.optimizer.iterations))

    @property
    def accumulation(self) -> int:
        """The number of batches in one step."""
        return self.optimizer.gradient_accumulation_steps or 1

    def begin_anew(self, state: PruningState) -> None:
        """Set a state, and every mask to all True."""
        self.state = state
        for masked in self.masked:
            masked.mask.assign(np.ones(masked.variable.shape, bool))

    def count(self) -> None:
        """Count one step, if gradient accumulation has completed it."""
        one = keras.ops.cast(self._step >= 0, self._step.dtype)
        if self.accumulation > 1:
            calls = keras_private.calls_of(self.optimizer).value
            one = one * keras.ops.cast(calls % self.accumulation == 0, self._step.dtype)
        self._step.assign(self._step + one)

    # ---------------------------------------------------------------- zeros

    def zero_pruned(self) -> None:
        """Set every pruned weight and its average to 0.0."""
        self.zero(lambda masked: (masked.variable, *masked.averages))

    def zero_companions(self) -> None:
        """Set to 0.0 the averages of pruned weights, and their slots if others depend on them."""
        elementwise = updates_elementwise(self.optimizer, [m.variable for m in self.masked])
        self.zero(lambda masked: masked.averages + (() if elementwise else masked.slots))

    def zero(self, which: Callable[[MaskedWeight], tuple[keras.Variable, ...]]) -> None:
        """Set the variables that belong to a mask to 0.0 where it is False."""
        pairs = [(variable, masked.mask) for masked in self.masked for variable in which(masked)]
        backends.current().zero_pruned([v for v, _ in pairs], [m for _, m in pairs])

    def release(self) -> None:
        """Remove the masks from the optimizer; without any it has the user's class again."""
        detach(self.outer, self)


def _variable(name: str, shape: tuple[int, ...], dtype: str, initial: Any) -> keras.Variable:
    return keras.Variable(
        initial,
        shape=shape,
        dtype=dtype,
        trainable=False,
        aggregation="only_first_replica",
        name=name,
    )


def _mask_for(variable: keras.Variable, name: str) -> keras.Variable:
    """A mask, all True, on the same devices as the variable."""
    return keras.Variable(
        "ones",
        shape=variable.shape,
        dtype="bool",
        trainable=False,
        layout=getattr(variable, "_layout", None),
        name=name,
    )


def warn_of_untrained(paths: Sequence[str]) -> None:
    """Name the targets that stay as they are, because the optimizer does not train them."""
    if paths:
        warnings.warn(
            f"The optimizer trains only a part of the weights to prune; {list(paths)} stay as they "
            "are, and are not counted in the sparsity. Give it all of the model's trainable "
            "weights, or leave these out with `filters` or `overrides`.",
            stacklevel=4,
        )


def _refuse_others(received: object) -> NoReturn:
    raise ValueError(
        "The optimizer was built for the weights of one model, when it was wrapped, and trains "
        f"others as well. Received: {received}. Build it for all of them before: "
        "`optimizer.build([*encoder.trainable_variables, *projector.trainable_variables])`, then "
        "`pruner.wrap(optimizer)`; or make one model of both, and the pruner for it."
    )


# -------------------------------------------------------------------- the class


class Prunings(keras_private.Saveable):
    """The prunings that an optimizer carries, one for each schedule; saved beside its variables.

    Args:
        optimizer: the optimizer that carries them.
        loading: arguments of `deserialize_keras_object` for prunings that are read from a file:
            the custom objects and the safe mode.
    """

    name = "pruning"

    def __init__(
        self, optimizer: keras.optimizers.Optimizer, loading: Mapping[str, Any] | None = None
    ) -> None:
        self.all: list[KerasPruning] = []
        self._masks: dict[Any, keras.Variable] = {}
        self._optimizer: Callable[[], Any] = weakref.ref(optimizer)
        self._loading = dict(loading or {})
        self._unread: dict[str, np.ndarray] = {}

    def __dir__(self) -> list[str]:
        """Empty: Keras would save every attribute that `dir` lists."""
        return []

    def _obj_type(self) -> str:
        return "Optimizer"

    @property
    def variables(self) -> list[keras.Variable]:
        """The variables of all prunings."""
        return [variable for pruning in self.all for variable in pruning.variables]

    def build(self) -> None:
        """Make the masks; the optimizer must be built."""
        optimizer = self._optimizer()
        for pruning in self.all:
            if not pruning.built:
                pruning.build(optimizer)
        masked = [masked for pruning in self.all for masked in pruning.masked]
        self._masks = {keras_private.key_of(optimizer, m.variable): m.mask for m in masked}
        backends.current().track(optimizer, self.variables)
        if self._unread:
            self._read(self._unread)
            self._unread = {}

    @property
    def updates_elementwise(self) -> bool:
        """Whether the gradients of pruned weights need no mask, by the module optimizer_slots."""
        masked = [masked for pruning in self.all for masked in pruning.masked]
        return updates_elementwise(self._optimizer(), [each.variable for each in masked])

    # ---------------------------------------------------------------- in a step

    def before_step(self) -> None:
        """Make a first update that could not be made earlier; refuse a step without a pruner."""
        for pruning in self.all:
            pruning.applied = True
            if pruning.before_first_step is not None:
                pruning.before_first_step()
            if pruning.unattended == "refuse":
                raise RuntimeError(UNATTENDED)
            if pruning.unattended == "warn":
                pruning.unattended = None
                warnings.warn(UNFINISHED, stacklevel=3)

    def check_known(self, variables: Sequence[keras.Variable]) -> None:
        """Raise for variables that the optimizer was not built for."""
        key_of, optimizer = keras_private.key_of, self._optimizer()
        known = {key_of(optimizer, variable) for variable in keras_private.trained_by(optimizer)}
        unknown = [v for v in variables if key_of(optimizer, v) not in known]
        if unknown:
            _refuse_others([getattr(variable, "path", variable.name) for variable in unknown])

    def check_number(self, values: Sequence[Any]) -> None:
        """Raise for another number of values than the optimizer was built for."""
        built = len(keras_private.trained_by(self._optimizer()))
        if len(values) != built:
            _refuse_others(f"{len(values)} weights to train, where it was built for {built}")

    def live(self, grads: Sequence[Any], variables: Sequence[keras.Variable]) -> list[Any]:
        """The gradients, with zeros where weights are pruned."""
        key_of, optimizer = keras_private.key_of, self._optimizer()
        masks = [self._masks.get(key_of(optimizer, variable)) for variable in variables]
        return [
            gradient
            if gradient is None or mask is None
            else backends.current().mask_gradient(gradient, mask)
            for gradient, mask in zip(grads, masks, strict=True)
        ]

    @contextlib.contextmanager
    def zeroing(self) -> Iterator[None]:
        """A context for the user's own step, after which pruned weights are zero."""
        optimizer = self._optimizer()
        # The backend zeroes a weight in the same write as its update, if nothing is written later.
        fused = self._masks if self.updates_elementwise and not optimizer.use_ema else {}
        with backends.current().masking_updates(optimizer, fused) as zeroed:
            yield

        def left(masked: MaskedWeight) -> tuple[keras.Variable, ...]:
            is_zero = keras_private.key_of(optimizer, masked.variable) in zeroed
            return () if is_zero else (masked.variable, *masked.averages)

        for pruning in self.all:
            pruning.zero(left)

    def after_training(self) -> None:
        """Zero pruned weights that were set to averages; warn of steps without a pruner."""
        for pruning in self.all:
            pruning.zero_pruned()
            state = pruning.state
            if not pruning.applied or state.has_ended:
                continue
            if pruning.unattended == "refuse":
                raise RuntimeError(UNATTENDED)
            if state.step > pruning.attended_to:
                pruning.attended_to = state.step
                pruning.unattended = None
                warnings.warn(UNFINISHED, stacklevel=3)

    # ---------------------------------------------------------------- saving and loading

    def save_own_variables(self, store: Any) -> None:
        """Save the masks, the state and the configs of the prunings."""
        built = [pruning for pruning in self.all if pruning.built]
        if not built:
            return
        store["prunings"] = as_bytes([_config(pruning) for pruning in built])
        for i, pruning in enumerate(built):
            for name, array in save_pruning(pruning).items():
                store[f"{i}.{name}"] = array

    def load_own_variables(self, store: Any) -> None:
        """Load what `save_own_variables` saved; an optimizer without prunings gets them.

        Raises:
            ValueError: if the file has no pruning state, or that of another plan.
        """
        arrays = {name: np.asarray(store[name]) for name in store.keys()}  # noqa: SIM118 - Keras'
        optimizer = self._optimizer()
        if not self.all and not arrays:
            detach(optimizer)  # a plain file
        elif optimizer.built:
            self._read(arrays)
        else:
            self._unread = arrays

    def _read(self, arrays: Mapping[str, np.ndarray]) -> None:
        if not self.all and not self._make(from_bytes(arrays["prunings"])):
            return
        for i, pruning in enumerate(self.all):
            prefix = f"{i}."
            mine = {n.removeprefix(prefix): a for n, a in arrays.items() if n.startswith(prefix)}
            load_pruning(pruning, mine)
            if pruning.unattended is not None:
                pruning.unattended = _unattended(pruning.state)
                pruning.attended_to = pruning.state.step

    def _make(self, configs: Sequence[Mapping[str, Any]]) -> bool:
        """Make the prunings of a file from their configs; False, with a warning, if that fails."""
        problems = [config["problem"] for config in configs if "problem" in config]
        try:
            made = [] if problems else [_from_config(config, self._loading) for config in configs]
        except (TypeError, ValueError) as error:  # unknown classes, or lambdas in safe mode
            problems = [one_line(error)]
        if problems:
            warnings.warn(
                f"The pruning that this model carries cannot be loaded: {problems[0]} Only its "
                "weights and its optimizer are there. To go on where it stopped, pass the same "
                "callback to `fit` and load the file's weights when the training begins, as "
                "keras.callbacks.BackupAndRestore does.",
                stacklevel=2,
            )
            detach(self._optimizer())
            return False
        self.all = made
        for pruning in self.all:
            pruning.optimizer = pruning.outer = self._optimizer()
        self.build()
        return True


def _unattended(state: PruningState) -> Unattended:
    if state.has_ended:
        return None
    return "warn" if state.updated_at >= 0 else "refuse"


def _config(pruning: KerasPruning) -> dict[str, Any]:
    """The config of a pruning; or the reason why it cannot be saved, under "problem"."""
    plan = pruning.plan
    parts = {
        "schedule": pruning.schedule,
        "targets": list(plan.targets),
        "groups": list(plan.groups),
        "allocation": plan.allocation,
        "criterion": plan.criterion,
    }
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of lambdas: Keras refuses them again in safe mode
            made = keras.saving.serialize_keras_object(parts)
        as_bytes(made)
    except (TypeError, ValueError, OSError) as error:
        return {"problem": f"it holds objects that cannot be saved ({one_line(error)})."}
    return {"name": pruning.name, "parts": made}


def _from_config(config: Mapping[str, Any], loading: Mapping[str, Any]) -> KerasPruning:
    parts = keras.saving.deserialize_keras_object(config["parts"], **loading)
    targets, groups = tuple(parts["targets"]), tuple(parts["groups"])
    plan = Plan(targets, (), (), parts["allocation"], parts["criterion"], groups)
    return KerasPruning(parts["schedule"], lambda: plan, config["name"])


class _Pruned:
    """The methods that `pruned_class_of` adds to the class of the user's optimizer."""

    pruning: Prunings
    users_class: type

    @property
    def variables(self) -> list[keras.Variable]:
        """The user's optimizer's own variables, then those of its prunings."""
        own = super().variables  # type: ignore[misc]
        prunings = vars(self).get("pruning")
        return own if prunings is None else [*own, *prunings.variables]

    def build(self, variables: Any) -> None:
        super().build(variables)  # type: ignore[misc]
        if variables:
            self.pruning.build()

    def apply(self, grads: Sequence[Any], trainable_variables: Any = None) -> None:
        """Make one step of the user's optimizer, after which the pruned weights are zero."""
        if not self.built and trainable_variables:  # type: ignore[attr-defined]
            with keras.name_scope(self.name, caller=self):  # type: ignore[attr-defined]
                self.build(list(trainable_variables))
        if not len(grads):
            return
        if trainable_variables:
            self.pruning.check_known(trainable_variables)
        self.pruning.before_step()
        if not self.pruning.updates_elementwise:
            grads = self.pruning.live(grads, trainable_variables or keras_private.trained_by(self))
        with self.pruning.zeroing():
            super().apply(grads, trainable_variables)  # type: ignore[misc]
        for pruning in self.pruning.all:
            pruning.count()

    def stateless_apply(
        self, optimizer_variables: Sequence[Any], grads: Sequence[Any], trainable_variables: Any
    ) -> Any:
        """The step on values; says before Keras does if there are others than it was built for."""
        if self.built:  # type: ignore[attr-defined]
            self.pruning.check_number(trainable_variables)
        return super().stateless_apply(  # type: ignore[misc]
            optimizer_variables, grads, trainable_variables
        )

    def finalize_variable_values(self, var_list: Sequence[keras.Variable]) -> None:
        """Let the user's optimizer write its averages into the model, then zero the pruned ones.

        Keras calls this after a failed step as well. On JAX the weights have no values then, and
        an error about that would hide the first one.
        """
        if all(map(backends.current().has_value, var_list)):
            super().finalize_variable_values(var_list)  # type: ignore[misc]
            self.pruning.after_training()

    def save_own_variables(self, store: Any) -> None:
        with _of_users_class(self):
            self.save_own_variables(store)

    def load_own_variables(self, store: Any) -> None:
        with _of_users_class(self):
            self.load_own_variables(store)

    @classmethod
    def from_config(cls, *args: Any, **kwargs: Any) -> Any:
        """Make the optimizer of a file; its prunings follow with its variables."""
        optimizer = super().from_config(*args, **kwargs)  # type: ignore[misc]
        vars(optimizer)["pruning"] = Prunings(optimizer, keras_private.loading_scope())
        return optimizer


class _PrunedInside:
    """The methods added to a `LossScaleOptimizer`, which also saves its inner optimizer."""

    users_class: type
    inner_optimizer: Any

    def save_own_variables(self, store: Any) -> None:
        with _of_users_class(self.inner_optimizer):
            super().save_own_variables(store)  # type: ignore[misc]

    def load_own_variables(self, store: Any) -> None:
        with _of_users_class(self.inner_optimizer):
            super().load_own_variables(store)  # type: ignore[misc]


@contextlib.contextmanager
def _of_users_class(optimizer: Any) -> Iterator[None]:
    """A context in which the optimizer has the user's class, and so only its own variables."""
    pruned = type(optimizer)
    if not isinstance(optimizer, _Pruned):
        yield
        return
    object.__setattr__(optimizer, "__class__", pruned.users_class)
    try:
        yield
    finally:
        object.__setattr__(optimizer, "__class__", pruned)


_pruned_classes: dict[type, type] = {}


def pruned_class_of(users: type) -> type:
    """The subclass of an optimizer's class whose steps leave pruned weights at zero."""
    if users in _pruned_classes:
        return _pruned_classes[users]
    names = {
        "users_class": users,
        "__module__": users.__module__,
        "__qualname__": users.__qualname__,
        "__doc__": users.__doc__,
    }
    is_outer = issubclass(users, keras.optimizers.LossScaleOptimizer)
    added = _PrunedInside if is_outer else _Pruned
    pruned = type(users)(users.__name__, (added, users), names)
    keras_private.save_as(pruned, users)
    _pruned_classes[users] = pruned
    return pruned


def _name_those_of_keras_in_files() -> None:
    """Save a pruned optimizer of Keras under the module and name of Keras' own class.

    Plain Keras then finds its own class in the file, and loads the optimizer with its state. With
    this package imported, the same name stands for the pruned class.
    """
    for public in vars(keras.optimizers).values():
        if isinstance(public, type) and issubclass(public, keras.optimizers.Optimizer):
            empty: Any = public.__new__(public)  # type: ignore[call-overload]
            pruned = pruned_class_of(type(empty))  # on PyTorch a subclass of its own
            keras_private.name_in_files(pruned, public.__module__, public.__name__)


_name_those_of_keras_in_files()


def is_of_keras(optimizer: keras.optimizers.Optimizer) -> bool:
    """Whether its class is Keras' own; only then can a `.keras` file resume the pruning."""
    return type(optimizer).__module__.startswith("keras.")


# -------------------------------------------------------------------- on an optimizer


def check_wrappable(optimizer: Any, *, used: bool) -> None:
    """Raise unless a pruner can wrap `optimizer`; `used`: it has wrapped another one before."""
    if prunings_on(optimizer):
        raise ValueError(
            "`optimizer` is wrapped for pruning already, and once is enough. Received: "
            f"optimizer={optimizer.name!r}. Go on with the pruner that wrapped it, or call its "
            "`release()` first."
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


def attach(
    optimizer: Any, pruning: KerasPruning, variables: Sequence[keras.Variable] | None = None
) -> None:
    """Put a pruning on an optimizer, and give the optimizer the pruned subclass of its class.

    Args:
        optimizer: the user's optimizer, or the `LossScaleOptimizer` around it.
        pruning: new, or with its masks if it was on the optimizer before.
        variables: the variables of the model, for which the optimizer is built; None if the
            model is not built.
    """
    inner = within(optimizer)
    for each in {id(each): each for each in (optimizer, inner)}.values():
        if not isinstance(each, (_Pruned, _PrunedInside)):
            object.__setattr__(each, "__class__", pruned_class_of(type(each)))
    if "pruning" not in vars(inner):
        vars(inner)["pruning"] = Prunings(inner)
    inner.pruning.all.append(pruning)
    pruning.optimizer, pruning.outer = inner, optimizer
    if variables and inner.built and not keras_private.trained_by(inner):
        _warn_of_lost_state(inner)
        inner.built = False
        inner.build(variables)
        inner.iterations.assign(0)
        if optimizer is not inner:  # scaling has its own variables already
            keras.optimizers.Optimizer.build(optimizer, variables)
    elif inner.built:
        inner.pruning.build()
    if variables and not optimizer.built:
        optimizer.build(variables)


def _warn_of_lost_state(optimizer: keras.optimizers.Optimizer) -> None:
    """Warn that the state is lost: from an `.h5` file Keras builds an optimizer of no variables."""
    warnings.warn(
        f"{type(optimizer).__name__} begins without its state, and a schedule at step 0: this "
        "model was loaded from an `.h5` file, from which Keras restores neither. To stop and go "
        "on exactly, save the model as `.keras`.",
        stacklevel=4,
    )


def detach(optimizer: Any, pruning: KerasPruning | None = None) -> None:
    """Remove one pruning from an optimizer, or all; without any it has the user's class again."""
    inner = within(optimizer)
    inner.pruning.all = [each for each in inner.pruning.all if pruning and each is not pruning]
    if inner.pruning.all:
        inner.pruning.build()
        return
    backends.current().track(inner, [])
    del vars(inner)["pruning"]
    for each in {id(each): each for each in (optimizer, inner)}.values():
        object.__setattr__(each, "__class__", type(each).users_class)


def within(optimizer: Any) -> Any:
    """The inner optimizer of a `LossScaleOptimizer`; any other optimizer itself."""
    is_outer = isinstance(optimizer, keras.optimizers.LossScaleOptimizer)
    return optimizer.inner_optimizer if is_outer else optimizer


def keep_zeros(
    optimizer: keras.optimizers.Optimizer, plan: Plan, variables: Sequence[keras.Variable]
) -> None:
    """Let an optimizer of `variables` keep the present zeros in the targets of a plan."""
    schedule = ConstantSparsity(0.0, end_step=0)
    pruning = KerasPruning(schedule, lambda: plan)
    attach(optimizer, pruning, variables)
    for masked in pruning.masked:
        masked.mask.assign(backends.current().to_numpy(masked.variable) != 0)
    pruning.state = PruningState.begin(schedule, schedule).updated()
    pruning.unattended = None


def prunings_on(optimizer: Any) -> list[KerasPruning]:
    """The prunings that an optimizer, or the one inside a `LossScaleOptimizer`, carries."""
    inner = within(optimizer)
    return list(inner.pruning.all) if isinstance(inner, _Pruned) else []


def prunings_of(model: keras.Model) -> list[KerasPruning]:
    """The prunings that the optimizer of a compiled model carries."""
    return prunings_on(getattr(model, "optimizer", None))


def find(model: keras.Model) -> KerasPruning | None:
    """The first of `prunings_of(model)`."""
    return next(iter(prunings_of(model)), None)


_compiled_with: "weakref.WeakKeyDictionary[keras.Model, weakref.ref[KerasPruning]]" = (
    weakref.WeakKeyDictionary()
)


def compile_anew(model: keras.Model, pruning: KerasPruning, step: Any = None) -> None:
    """Drop a model's compiled step, unless it was compiled with these very masks.

    Args:
        model: a model whose optimizer carries the pruning.
        pruning: the pruning that was last put on it.
        step: the `train_function` that was compiled with these masks; None if there is none.
    """
    before = _compiled_with.get(model)
    is_known = before is not None and before() is pruning
    if before is not None and not is_known:
        backends.current().forget_step(model)
    model.train_function = step if is_known else None
    _compiled_with[model] = weakref.ref(pruning)
