"""What `prune_low_magnitude` notes on a layer, and the plan that follows from the notes."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras

from keras_pruner.allocation import uniform
from keras_pruner.criteria import magnitude
from keras_pruner.patterns import NM, Block, Pattern, Unstructured
from keras_pruner.plan import Plan, Skip, Target
from keras_pruner.tfmot.schedules import ConstantSparsity, PruningSchedule
from keras_pruner.values import check_integer
from keras_pruner.weights import OwnedWeight, weights_of

_POOLINGS = {"AVG": "mean", "MAX": "max"}
_MARK = "_keras_pruner_tfmot"
_TRAIN = "make_train_function"


@dataclasses.dataclass(frozen=True, eq=False)
class Mark:
    """How the weights of a layer are to be pruned.

    Args:
        schedule: when, and how much.
        block_size: height and width of the blocks, for weights of rank 2.
        pooling: "AVG" or "MAX" of a block.
        m_by_n: m zeros in every n consecutive inputs; None: blocks, or single weights.
        allows: which of the layers within are pruned.
    """

    schedule: PruningSchedule
    block_size: Sequence[int]
    pooling: str
    m_by_n: Sequence[int] | None
    allows: Callable[[keras.layers.Layer], bool]

    def __post_init__(self) -> None:
        if not isinstance(self.schedule, PruningSchedule):
            raise ValueError(
                "`pruning_schedule` must be a PruningSchedule of keras_pruner.tfmot, like "
                f"ConstantSparsity(0.5, 0). Received: pruning_schedule={self.schedule!r}."
            )
        if self.pooling not in _POOLINGS:
            raise ValueError(
                f"Unsupported pooling type {self.pooling!r}. `block_pooling_type` must be 'AVG' "
                f"or 'MAX'. Received: block_pooling_type={self.pooling!r}."
            )
        object.__setattr__(self, "block_size", _pair("block_size", self.block_size, least=1))
        if self.m_by_n is not None:
            m, n = _pair("sparsity_m_by_n", self.m_by_n, least=0)
            if m >= n or m == 0:
                raise ValueError(
                    "`sparsity_m_by_n` = (m, n) sets m of every n weights to zero, 0 < m < n. "
                    f"Received: sparsity_m_by_n={self.m_by_n!r}."
                )
            object.__setattr__(self, "m_by_n", (m, n))
            # TFMOT chooses these zeros at its step 1, whatever the schedule.
            object.__setattr__(self, "schedule", ConstantSparsity(m / n, 1))

    def pattern(self, path: str, target: Target) -> Pattern | None:
        """The zeros allowed in a weight; None if m-by-n leaves it as it is."""
        kernel = target.kernel_shape
        if self.m_by_n is not None:
            m, n = self.m_by_n
            group = min(n, kernel[-2])
            return NM(n - m, group) if n - m < group else None
        if self.block_size == (1, 1):
            return Unstructured()
        if len(target.shape) != 2:
            raise ValueError(
                "Block Sparsity can only be used for layers which have 2-dimensional weights. "
                f"Received: block_size={self.block_size} for {path} of shape {target.shape}. "
                "Prune the other layers one by one, or natively: "
                f"kp.GradualPruning(..., pattern=kp.Block({self.block_size}))."
            )
        height, width = map(min, self.block_size, kernel)
        return Block((height, width), _POOLINGS[self.pooling])


def _pair(name: str, value: Any, *, least: int) -> tuple[int, int]:
    try:
        first, second = value
    except (TypeError, ValueError):
        raise ValueError(
            f"The {name} argument must be a tuple/list of 2 integers. Received: {name}={value!r}."
        ) from None
    for number in (first, second):
        check_integer(name, number, least=least)
    return int(first), int(second)


def everything(layer: keras.layers.Layer) -> bool:
    """No policy: every layer is pruned."""
    del layer
    return True


def is_marked(layer: keras.layers.Layer) -> bool:
    """Whether the layer itself has a mark."""
    return _MARK in vars(layer)


def put(mark: Mark, layer: keras.layers.Layer) -> None:
    """Mark a layer, unless it has one; until somebody prunes it, it refuses to be trained."""
    if is_marked(layer):
        return
    setattr(layer, _MARK, mark)
    call = layer.call

    @functools.wraps(call)
    def refusing(*args: Any, **kwargs: Any) -> Any:
        context = layer._get_call_context()
        if context.training:
            raise RuntimeError(FORGOTTEN)
        _refuse_early(context.entry_layer)
        return call(*args, **kwargs)

    layer.call = refusing


FORGOTTEN = (
    "This model is to be pruned, and nobody does it: it would be trained dense. Pass "
    "`callbacks=[UpdatePruningStep()]` to `fit`; in a loop of your own call its `set_model`, "
    "`on_train_begin` and, first thing in every step, `on_train_batch_begin`; or "
    "`strip_pruning(model)` to train it as it is."
)


def _refuse_early(model: Any) -> None:
    """Have `fit` refuse before its first step: on JAX, an error in a step loses the weights."""
    if not getattr(model, "compiled", False) or _TRAIN in vars(model):
        return

    def check(*args: Any, **kwargs: Any) -> Any:
        if any("call" in vars(layer) for layer, _ in marks_of(model)):
            raise RuntimeError(FORGOTTEN)
        vars(model).pop(_TRAIN)
        return model.make_train_function(*args, **kwargs)

    model.make_train_function = check


def attended(layer: keras.layers.Layer) -> None:
    """Let a marked layer be trained: the optimizer sees to it from now on."""
    if is_marked(layer):
        vars(layer).pop("call", None)


def remove(layer: keras.layers.Layer) -> None:
    """Take the mark off."""
    attended(layer)
    vars(layer).pop(_TRAIN, None)
    if is_marked(layer):
        delattr(layer, _MARK)


def marks_of(model: keras.layers.Layer) -> Iterator[tuple[keras.layers.Layer, Mark]]:
    """The marked layers of a model, those that contain others first."""
    marked = [layer for layer in model._flatten_layers() if is_marked(layer)]
    marked.sort(key=lambda layer: len(list(layer._flatten_layers())), reverse=True)
    for layer in marked:
        yield layer, getattr(layer, _MARK)


def schedules_of(model: keras.layers.Layer) -> list[PruningSchedule]:
    """The different schedules in a model, each once."""
    return list(dict.fromkeys(mark.schedule for _, mark in marks_of(model)))


def plan_of(model: keras.layers.Layer, schedule: PruningSchedule | None = None) -> Plan:
    """What the marks ask for: all of it, or the share of one schedule.

    Raises:
        ValueError: if a mark asks for blocks where there are none.
    """
    marks = {id(v): mark for layer, mark in marks_of(model) for v in layer.variables}
    position = {id(v): i for i, v in enumerate(model.trainable_variables)}
    targets, skipped, variables = [], [], []
    for owned in weights_of(model):
        index = position.get(id(owned.variable))
        reason, target = _judge(owned, marks.get(id(owned.variable)), index, schedule)
        if target is None:
            skipped.append(Skip(owned.path, tuple(owned.variable.shape), reason))
        else:
            targets.append(target)
            variables.append(owned.variable)
    return Plan(tuple(targets), tuple(skipped), tuple(variables), uniform, magnitude)


def _judge(
    owned: OwnedWeight, mark: Mark | None, index: int | None, schedule: PruningSchedule | None
) -> tuple[str, Target | None]:
    if mark is None:
        return "its layer was not given to prune_low_magnitude", None
    if not mark.allows(owned.layer):
        return "the pruning policy leaves its layer alone", None
    reason = owned.reason(by_default=True) or ("frozen" if index is None else "")
    if reason:
        return reason, None
    if schedule is not None and mark.schedule != schedule:
        return "another schedule prunes it", None
    shape = tuple(owned.variable.shape)
    target = Target(owned.path, shape, Unstructured(), None, owned.axes(), index)
    pattern = mark.pattern(owned.path, target)
    if pattern is None:
        return f"too few inputs for {mark.m_by_n} zeros to be chosen", None
    return "", dataclasses.replace(target, pattern=pattern)
