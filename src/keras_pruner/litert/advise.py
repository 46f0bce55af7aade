"""Predict before any training which layers run faster with which zeros, on which runtime."""

import dataclasses
import math
import re
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np

from keras_pruner.channels.layer_rules import channels_of
from keras_pruner.litert import cost_model, torch_kernels, xnnpack_rewrite
from keras_pruner.litert.layer_shapes import holders, positions_of_output
from keras_pruner.litert.npu_model import Npu, NpuWork, npu_of, work_of
from keras_pruner.litert.vela import ACCELERATORS
from keras_pruner.model_graph import ModelGraph
from keras_pruner.model_weights import OwnedWeight, check_model, weights_of
from keras_pruner.patterns import (
    NM,
    Block,
    BudgetedPattern,
    Pattern,
    Unstructured,
    takes_sparsity,
)
from keras_pruner.plan import Plan, Target
from keras_pruner.reporting.report import Report
from keras_pruner.reporting.tables import Table
from keras_pruner.rules import Rules
from keras_pruner.validation import check_integer, check_sparsity

_STEP = 4000.0  # nanoseconds of a recurrent layer's step, beside its matrix products


@dataclasses.dataclass(frozen=True)
class LayerAdvice:
    """The effect of zeros in one weight.

    Attributes:
        path: path of the weight, as in a plan.
        share: estimated fraction of the dense model's time that the weight takes.
        pattern: the recommended pattern of zeros; None: leave the weight dense.
        speedup: how many times faster the products with the weight run with these zeros.
        reason: why this pattern is recommended, or none.
    """

    path: str
    share: float
    pattern: Pattern | None
    speedup: float
    reason: str


@dataclasses.dataclass(frozen=True)
class Advice(Report):
    """The result of `advise`; prints as a table.

    Attributes:
        runtime: where the model will run.
        sparsity: fraction of zeros in the weights that are pruned.
        layers: the advice for each prunable weight.
        speedup: estimate of how many times faster the whole model runs; 1.0: not faster.
        hints: alternatives, and limits of the estimate.

    Example:
        >>> row = LayerAdvice("dense/kernel", 1.0, None, 1.0, "no sparse kernel")
        >>> print(Advice("openvino", 0.9, (row,), 1.0, ()))
        openvino at sparsity 0.9: not faster
          weight        time  zeros  speed-up  why
          ─────────────────────────────────────────────────────
          dense/kernel  100%  dense      1.0x  no sparse kernel
    """

    runtime: str
    sparsity: float
    layers: tuple[LayerAdvice, ...]
    speedup: float
    hints: tuple[str, ...]

    def headline(self) -> str:
        """The estimated speed-up of the whole model."""
        result = f"{self.speedup:.1f}x faster" if self.speedup >= 1.05 else "not faster"
        return f"{self.runtime} at sparsity {self.sparsity:g}: {result}"

    def tables(self) -> list[Table]:
        """The advice for each weight; the short form has the slowest layers."""
        rows = [
            (x.path, f"{x.share:.0%}", x.pattern or "dense", f"{x.speedup:.1f}x", x.reason)
            for x in self.layers
        ]
        heads = ["weight", ">time", "zeros", ">speed-up", "why"]
        return [Table("", heads, rows, importance=[x.share for x in self.layers])]

    def notes(self) -> tuple[str, ...]:
        """The hints."""
        return self.hints

    def settings(self) -> dict[str, Any]:
        """The recommendation as arguments for `kp.prune` or `kp.GradualPruning`.

        If no layer runs faster, the arguments prune every layer with unstructured zeros, for a
        smaller file; `hints` says so.
        """
        patterns = {x.pattern for x in self.layers if x.pattern is not None}
        if not patterns:
            every = {f"^{re.escape(x.path)}$": (self.sparsity, Unstructured()) for x in self.layers}
            return {"pattern": Unstructured(), "allocation": "uniform", "overrides": every}
        overrides = {f"^{re.escape(x.path)}$": x.pattern for x in self.layers}
        return {
            "pattern": max(patterns, key=repr),
            "allocation": "uniform",
            "overrides": {
                path: (self.sparsity, pattern) if isinstance(pattern, BudgetedPattern) else pattern
                for path, pattern in overrides.items()
            },
        }

    def plan(self, model: keras.Model) -> Plan:
        """The plan of the recommended arguments for a model."""
        return Rules(**self.settings()).plan(model)


def advise(
    model: keras.Model,
    runtime: str | cost_model.SpeedupTable = "litert-x86",
    *,
    sparsity: float = 0.8,
    pattern: Pattern | None = None,
    batch_size: int = 1,
) -> Advice:
    """Predict which layers of a model run faster with zeros, before any training.

    The prediction follows the rules of the runtimes and measured break-even points.

    Args:
        model: a built Keras 3 model.
        runtime: where the model will run. "litert-x86"; "litert-wasm" (browsers, Node);
            "litert-arm" (its own rules, but figures of x86); "torch-cpu" (through
            `kp.torch_cpu.sparse_inference`); an accelerator such as "ethos-u55-128" (by the
            estimates of Arm's compiler for one sample); "onnxruntime" or "openvino", where no
            layer gains; or the table that `measure_speedups` returned for this machine.
        sparsity: fraction of zeros, in [0, 1).
        pattern: the pattern of zeros to judge; None: the best one for each layer.
        batch_size: samples per inference; NPUs take one. Sparse kernels gain less with many rows,
            and in a Dense layer over a sequence each step is a row.

    Returns:
        The expected speed-up of each layer and of the whole model.

    Raises:
        ValueError: for a wrong argument.

    Example:
        >>> layers = [keras.layers.Dense(2048), keras.layers.Dense(1024)]
        >>> model = keras.Sequential([keras.Input((1024,)), *layers])
        >>> advice = advise(model, "litert-x86", sparsity=0.9)
        >>> advice.layers[0].pattern == Block((4, 1))
        True
        >>> advice.speedup > 2
        True
        >>> advise(model, "openvino", sparsity=0.9).speedup
        1.0
    """
    check_model(model)
    check_sparsity("sparsity", sparsity)
    check_integer("batch_size", batch_size, least=1)
    known = (
        *cost_model.RUNTIMES, cost_model.TORCH, *cost_model.DENSE_RUNTIMES, *ACCELERATORS,
    )  # fmt: skip
    if not isinstance(runtime, cost_model.SpeedupTable) and runtime not in known:
        raise ValueError(f"`runtime` must be one of {known}. Received: runtime={runtime!r}.")
    if runtime in ACCELERATORS:
        return _advise_npu(model, str(runtime), sparsity, pattern)
    measured = None if runtime in cost_model.DENSE_RUNTIMES else cost_model.speedups_of(runtime)
    runtime = runtime if isinstance(runtime, str) else runtime.runtime
    parts = _parts(model, Rules().plan(model, frozen=True))
    model_bytes = sum(4.0 * p.size for p in parts if p.kind == "dense")
    obstacle = _cluster_obstacle(model, parts, runtime, sparsity)
    predictor = _Predictor(runtime, measured, sparsity, pattern, batch_size, model_bytes, obstacle)
    costs = [predictor.cost(part) for part in parts]
    fixed = sum(part.fixed for part in parts)
    total = sum(costs) + fixed
    found, saved = [], 0.0
    for part, cost in zip(parts, costs, strict=True):
        best, speedup, reason = predictor.judge(part)
        saved += cost - cost / speedup
        if part.target:
            found.append(LayerAdvice(part.path, cost / (total or 1.0), best, speedup, reason))
    whole = total / (total - saved) if total else 1.0
    hints = _hints(runtime, parts, is_faster=any(row.pattern is not None for row in found))
    hints = (*hints, *_shrinking(model, runtime, parts))
    return Advice(runtime, sparsity, tuple(found), whole, hints)


_LEAST_ON_NPU = 1.05


def _advise_npu(
    model: keras.Model, accelerator: str, sparsity: float, pattern: Pattern | None
) -> Advice:
    """The advice for an Ethos-U NPU: layers that wait for their weights gain from zeros."""
    npu = npu_of(accelerator)
    works = work_of(model, npu)
    plan = Rules().plan(model, frozen=True)
    targets = {id(v): t for v, t in zip(plan.variables, plan.targets, strict=True)}
    total = sum(work.cycles(npu) for work in works) or 1.0
    saved, rows, seen = 0.0, [], set()
    for work in works:
        kernel = getattr(work.layer, "kernel", None)
        target = targets.get(id(kernel)) if work.weights else None
        if target is None:
            continue
        cycles = work.cycles(npu)
        best, after, reason = _judge_npu(work, npu, sparsity, pattern)
        saved += cycles - after
        if target.path not in seen:  # a shared layer has one kernel
            seen.add(target.path)
            rows.append(LayerAdvice(target.path, cycles / total, best, cycles / after, reason))
    hints = [f"Approximates what Arm's compiler estimates for {accelerator}; nothing is compiled."]
    hints += _not_estimated(model, works)
    if all(row.pattern is None for row in rows):
        hints.insert(0, "No layer runs faster: settings() prunes for a smaller file.")
    return Advice(accelerator, sparsity, tuple(rows), total / (total - saved), tuple(hints))


def _judge_npu(
    work: NpuWork, npu: Npu, sparsity: float, pattern: Pattern | None
) -> tuple[Pattern | None, float, str]:
    """The best pattern for a layer, the cycles with it, and the reason."""
    two_of_four = work.cycles(npu, 0.5, two_of_four=True)
    dense = work.cycles(npu)
    candidates: list[tuple[float, Pattern]] = []
    if isinstance(pattern, NM):
        kept = pattern.n / pattern.m
        is_fast = (pattern.n, pattern.m) == (2, 4)
        candidates.append((work.cycles(npu, 1 - kept, two_of_four=is_fast), pattern))
    else:
        candidates.append((work.cycles(npu, sparsity), pattern or Unstructured()))
        if pattern is None and npu.halves:
            candidates.append((two_of_four, NM(2, 4)))
    after, best = min(candidates, key=lambda found: found[0])
    reason = _bottleneck(work, npu, is_halved=npu.halves and two_of_four < 0.95 * dense)
    if dense < _LEAST_ON_NPU * after:
        return None, dense, reason
    return best, after, reason


def _bottleneck(work: NpuWork, npu: Npu, *, is_halved: bool) -> str:
    """What a layer spends its time on, and which zeros change that."""
    computing = work.compute_cycles(npu)
    if work.read_cycles(npu, 0.0) <= computing:
        reason = "computing takes longer than reading its weights"
        return f"{reason}; 2:4 zeros halve it" if is_halved else reason
    reason = "waits for its weights"
    enough = [s for s in np.linspace(0, 0.99, 100) if work.read_cycles(npu, s) <= computing]
    return f"{reason}; from {enough[0]:.0%} zeros on, computing takes longer" if enough else reason


def _not_estimated(model: keras.Model, works: list[NpuWork]) -> list[str]:
    """A hint on the layers with weights that have no estimate."""
    known = {id(work.layer) for work in works if work.weights}
    owners = {id(o.layer): o.layer for o in weights_of(model) if len(o.variable.shape) >= 2}
    names = [layer.name for key, layer in owners.items() if key not in known]
    return [f"Without an estimate, counted as no time: {', '.join(names)}."] if names else []


@dataclasses.dataclass(frozen=True)
class _Part:
    """One weight and its work for one sample.

    Attributes:
        path: path of the weight.
        kind: "dense", "conv", "depthwise", "table" or "other".
        size: number of weights.
        inputs: number of inputs of an output, for each tap of a convolution.
        multiplications: multiplications for one sample.
        target: whether the weight can be pruned.
        pointwise: whether it is the kernel of a 1x1 convolution.
        fixed: time of its layer that zeros do not change.
        rows: number of rows that the layer multiplies at once.
        reused_bytes: bytes of a recurrent cell's weights, which stay in the cache from step to
            step; None for other layers.
        product: the form in which PyTorch can run the layer sparse; None if it cannot.
    """

    path: str
    kind: str
    size: int
    inputs: int
    multiplications: float
    target: bool
    pointwise: bool = False
    fixed: float = 0.0
    rows: int = 1
    reused_bytes: float | None = None
    product: str | None = None


def _parts(model: keras.Model, plan: Plan) -> list[_Part]:
    targets = {id(v): t for v, t in zip(plan.variables, plan.targets, strict=True)}
    within = holders(model)

    def part(owned: OwnedWeight) -> _Part:
        holder = within.get(id(owned.layer))
        found = _part(owned, targets.get(id(owned.variable)), model, holder)
        return _with_product(found, owned, holder)

    return [part(owned) for owned in weights_of(model) if len(owned.variable.shape) >= 2]


def _with_product(part: _Part, owned: OwnedWeight, holder: Any) -> _Part:
    """Add the form and the rows of PyTorch's sparse product, if it has one for this weight."""
    if owned.variable.name != "kernel" or not torch_kernels.is_product(owned.layer, owned.view):
        return part
    rows = torch_kernels.positions(owned.layer, holder)
    return dataclasses.replace(part, rows=rows, product=torch_kernels.form_of(owned.layer))


def _part(owned: OwnedWeight, target: Target | None, model: keras.Model, holder: Any) -> _Part:
    """A weight and its work; `holder` is the layer that has the weight's layer as a part."""
    layer, view = owned.layer, owned.view
    size, is_target = math.prod(view.shape), target is not None
    if isinstance(layer, keras.layers.Embedding):
        return _Part(owned.path, "table", size, 0, 0.0, is_target)
    steps = _steps(layer, model)
    if steps is not None and len(owned.variable.shape) == 2:
        return _recurrent_part(owned, steps, is_target=is_target)
    positions = _positions(layer, holder)
    if steps is None and view.taps and "conv" in type(layer).__name__.lower():
        return _convolution_part(owned, positions, is_target=is_target)
    kind = "dense" if isinstance(layer, keras.layers.Dense) else "other"
    work = float(size * positions * (steps or 1))
    return _Part(owned.path, kind, size, view.matrix_shape[1], work, is_target, rows=positions)


def _recurrent_part(owned: OwnedWeight, steps: int, *, is_target: bool) -> _Part:
    """A kernel of a recurrent cell; the first one also carries the time of the steps."""
    size = math.prod(owned.view.shape)
    kernels = [weight.shape for weight in owned.layer.weights if len(weight.shape) == 2]
    return _Part(
        owned.path,
        "dense",
        size,
        owned.view.matrix_shape[1],
        size * steps,
        is_target,
        fixed=_STEP * steps if owned.variable.name == "kernel" else 0.0,
        reused_bytes=4.0 * sum(map(math.prod, kernels)),
    )


def _convolution_part(owned: OwnedWeight, positions: int, *, is_target: bool) -> _Part:
    """The kernel of a convolution."""
    layer, view = owned.layer, owned.view
    size, inputs = math.prod(view.shape), view.matrix_shape[1]
    taps = math.prod(view.shape[axis] for axis in view.taps)
    depthwise = isinstance(layer, keras.layers.DepthwiseConv1D | keras.layers.DepthwiseConv2D)
    kind = "depthwise" if depthwise else "conv"
    pointwise = kind == "conv" and taps == 1
    work = float(size * positions)
    return _Part(owned.path, kind, size, inputs // taps, work, is_target, pointwise)


def _positions(layer: Any, holder: Any) -> int:
    """How many times a layer applies its weight to one sample; 1 if that is not known."""
    if hasattr(layer, "equation"):
        return torch_kernels.positions(layer, holder)
    return positions_of_output(layer)


def _steps(cell: Any, model: keras.Model) -> int | None:
    """Time steps of the recurrent layer that has this cell; None if it is not such a cell."""
    for layer in model._flatten_layers():
        if isinstance(layer, keras.layers.RNN) and layer.cell is cell:
            try:
                return layer.input.shape[1] or 1
            except AttributeError:
                return 1
    return None


def _cluster_obstacle(model: keras.Model, parts: list[_Part], runtime: str, sparsity: float) -> str:
    """Why the convolutions of a model run dense; empty if they run sparse."""
    if not any(part.kind == "conv" for part in parts):
        return "no convolutions"
    if runtime in (*cost_model.DENSE_RUNTIMES, cost_model.TORCH):
        return ""
    if runtime == "litert-x86":
        return "XNNPACK has no sparse convolutions on x86; zeros make the file smaller"
    try:
        changes, obstacles = xnnpack_rewrite.missing(model)
    except ValueError as error:
        return str(error).split(". ")[0]
    if obstacles:
        return f"XNNPACK runs it dense: {obstacles[0]}"
    if changes:
        return "runs dense as it is: call kp.litert.prepare_for_xnnpack first"
    if sparsity <= cost_model.LEAST_SPARSITY:
        return "XNNPACK needs more than two thirds zeros"
    return ""


@dataclasses.dataclass(frozen=True)
class _Predictor:
    """Predicts the speed-up of each weight of a model.

    Attributes:
        runtime: name of the runtime.
        measured: speed-ups of sparse layers; None if the runtime unpacks zeros.
        sparsity: fraction of zeros to judge.
        pattern: the pattern to judge; None: the best one for each weight.
        batch_size: samples per inference.
        model_bytes: bytes of all Dense weights.
        obstacle: why convolutions run dense; empty if they run sparse.
    """

    runtime: str
    measured: cost_model.SpeedupTable | None
    sparsity: float
    pattern: Pattern | None
    batch_size: int
    model_bytes: float
    obstacle: str

    def cost(self, part: _Part) -> float:
        kind = part.kind if part.kind in ("dense", "conv", "depthwise") else "conv"
        return cost_model.cost(kind, part.multiplications, self._bytes(part), self.runtime)

    def _bytes(self, part: _Part) -> float:
        """Bytes of the weights that pass through the cache together with a weight."""
        return self.model_bytes if part.reused_bytes is None else part.reused_bytes

    def judge(self, part: _Part) -> tuple[Pattern | None, float, str]:
        """The recommended pattern for a weight, its speed-up and the reason."""
        if not part.target:
            return None, 1.0, "not pruned"
        if self.measured is None:
            return None, 1.0, f"{self.runtime} unpacks zeros when it loads a model"
        if self.runtime == cost_model.TORCH:
            return self._judge_product(part)
        if part.kind == "conv":
            return self._judge_convolution(part)
        if part.kind != "dense":
            return None, 1.0, "no sparse kernel for this layer; zeros make the file smaller"
        pattern = self.pattern or Block((4, 1))
        form = self._form(pattern, part)
        if form is None:
            return None, 1.0, f"no sparse kernel for {pattern!r}"
        read, rows = self._bytes(part), self.batch_size * part.rows
        speedup = self.measured.dense_speedup(form, self.sparsity, read, rows)
        if speedup > cost_model.LEAST_SPEEDUP:
            return pattern, speedup, f"LiteRT's sparse fully-connected, {form}"
        least = self.measured.break_even(form, read, rows, cost_model.LEAST_SPEEDUP)
        return None, 1.0, f"{form} pays only above {least:.0%} zeros here"

    def _judge_product(self, part: _Part) -> tuple[Pattern | None, float, str]:
        pattern = self.pattern or Unstructured()
        if part.product is None:
            return None, 1.0, "no product with a matrix, runs dense"
        if not takes_sparsity(pattern, self.sparsity):
            return None, 1.0, f"{pattern!r} fixes another sparsity than {self.sparsity:.0%}"
        assert self.measured is not None
        read, rows = 4.0 * part.size, self.batch_size * part.rows
        speedup = self.measured.dense_speedup(part.product, self.sparsity, read, rows)
        if speedup > cost_model.LEAST_SPEEDUP:
            return pattern, speedup, f"csr @ x.T, {rows} rows"
        least = self.measured.break_even(part.product, read, rows, cost_model.LEAST_SPEEDUP)
        return None, 1.0, f"csr @ x.T with {rows} rows pays only above {least:.0%} zeros"

    def _form(self, pattern: Pattern, part: _Part) -> str | None:
        if isinstance(pattern, Unstructured):
            return "csr"
        if isinstance(pattern, Block) and not pattern.shape[0] % 4 and not part.inputs % 4:
            return "block 1x4"
        return None

    def _judge_convolution(self, part: _Part) -> tuple[Pattern | None, float, str]:
        if self.obstacle:
            return None, 1.0, self.obstacle
        if not part.pointwise:
            return None, 1.0, "runs dense: only 1x1 convolutions skip zeros"
        pattern = self.pattern or Unstructured()
        if not takes_sparsity(pattern, self.sparsity):
            return None, 1.0, f"{pattern!r} fixes another sparsity than {self.sparsity:.0%}"
        speedup = cost_model.convolution_speedup(self.sparsity, self.runtime)
        return pattern, speedup, "XNNPACK's sparse 1x1 convolution"


def _hints(runtime: str, parts: list[_Part], *, is_faster: bool) -> tuple[str, ...]:
    if runtime == cost_model.TORCH:
        found = [
            "kp.torch_cpu.sparse_inference(model) uses these kernels. The built-in speed-ups are "
            'rough: kp.litert.measure_speedups(runtime="torch-cpu") measures those of this machine.'
        ]
        unchanged = "No layer runs faster: settings() prunes for a smaller file."
        return tuple(found if is_faster else [unchanged])
    hints = [
        f"Plain int8 instead (weights='int8', x86): files 4x smaller, {_int8_speed(parts)}.",
        "GPU: 2:4 zeros (kp.NM(2, 4)) through torch.sparse.to_sparse_semi_structured is the one "
        "stock path; not measured here.",
    ]
    if runtime in cost_model.NOT_MEASURED:
        hints.insert(0, f"{runtime} was not measured: figures of x86 and WebAssembly stand in.")
    if not is_faster:
        hints.insert(0, "No layer runs faster: settings() prunes for a smaller file.")
    return tuple(hints)


def _shrinking(model: keras.Model, runtime: str, parts: list[_Part]) -> Iterator[str]:
    """A hint on removing half of the channels; none if the model's channels are not known."""
    try:
        channels = channels_of(ModelGraph(model))
    except ValueError:
        return
    fewer = channels.macs() / max(1, channels.macs(channels.with_share(0.5)))
    if fewer < cost_model.LEAST_SPEEDUP:
        return
    kinds = {part.kind for part in parts}
    deep = "depthwise" in kinds
    share = cost_model.SHRUNK_SPEED.get(runtime, {}).get("depthwise" if deep else "other")
    faster = "speed not measured"
    if share:
        faster = f"about {max(1.0, share * fewer):.1f} times as fast, judging by other networks"
    yield (
        f"Fewer channels instead: kp.shrink(model, macs={1 / fewer:.2f}, calibration=x) removes "
        f"half of them; {fewer:.1f} times fewer multiplications, {faster}."
    )


def _int8_speed(parts: list[_Part]) -> str:
    """The measured speed of int8 models of this kind, as part of a sentence."""
    if any(part.reused_bytes is not None for part in parts):
        return "speed of recurrent models not measured"
    dense = sum(part.size for part in parts if part.kind == "dense")
    if 2 * dense > sum(part.size for part in parts):
        return "about 10x as fast for stacks of Dense layers"
    if any(part.kind == "depthwise" for part in parts):
        return "0.7x as fast for MobileNetV1, the one network with depthwise layers measured"
    return "speed of such models not measured"
