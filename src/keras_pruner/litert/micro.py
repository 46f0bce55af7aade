"""Files for TensorFlow Lite Micro whose pruned weights are unpacked while the network runs.

TensorFlow Lite Micro (TFLM) runs on microcontrollers. Its operator DECODE unpacks a weight into the
arena just before the layer that needs it: less flash, more RAM, a little more time. This module
writes two of its encodings: a bit for each weight with the non-zero values, and indices into a
look-up table. DECODE is in TFLM since 2025-10-17 (tables) and 2025-10-23 (pruned weights).
"""

import copy
import dataclasses
import itertools
import math
import os
import re
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_pruner.litert import flatbuffer, interpreter
from keras_pruner.litert.child_process import run_program
from keras_pruner.litert.export import Export, export_litert
from keras_pruner.litert.flatbuffer import Graph
from keras_pruner.litert.samples import batches_of, by_name, signature_of
from keras_pruner.litert.tflm_decode import Encoded, insert, pruned, table
from keras_pruner.model_file import atomic_write, check_destination
from keras_pruner.reporting.console import show_progress
from keras_pruner.reporting.report import Report
from keras_pruner.reporting.tables import Table
from keras_pruner.validation import check_installed, check_integer

_RUNS = 16  # samples to run in TFLM, whose kernels for PCs are slow
_PLAIN = "plain"
_MUCH = 1.5  # times the arena without DECODE


@dataclasses.dataclass(frozen=True)
class MicroWeight:
    """How one weight is stored.

    Attributes:
        name: name of the tensor.
        shape: its shape in the file, outputs first.
        sparsity: fraction of zeros.
        form: "plain", "bits and values" or "table of N".
        plain_bytes: its size in a file without DECODE.
        stored_bytes: its size in this file, with the operator that unpacks it.
        reason: why it is stored plain; empty if it is encoded.
    """

    name: str
    shape: tuple[int, ...]
    sparsity: float
    form: str
    plain_bytes: int
    stored_bytes: int
    reason: str = ""


@dataclasses.dataclass(frozen=True)
class MicroExport(Report):
    """The result of `export_micro`; prints as a table.

    Attributes:
        path: the file.
        flash: size of the file in bytes.
        plain_flash: size of the same file without DECODE.
        arena: bytes of RAM that TFLM allocates to run the file, on a 64-bit computer.
        plain_arena: the same without DECODE.
        time_ratio: time of a run, divided by that without DECODE, with TFLM's kernels for PCs.
        compared_on: number of samples on which the outputs of both files are bit-identical.
        weights: how each weight is stored, and why.
        operators: the methods that add the file's operators to TFLM's resolver.
        export: how close the file is to the Keras model.
        ram: the limit of the arena in bytes; None: no limit.

    Example:
        >>> weight = MicroWeight("dense", (8, 64), 0.9, "bits and values", 512, 400)
        >>> export = Export("m.tflite", 900, 900, (), 0.01)
        >>> print(MicroExport("m.tflite", 900, 2000, 3000, 2500, 1.1, 16, (weight,), (), export))
        m.tflite: 900 bytes of flash, 2.2x smaller; arena 3,000 bytes, 1.2 times as large; time 1.1x
          weight  shape    zeros  form             plain, bytes  bytes  why
          ─────────────────────────────────────────────────────────────────
          dense   (8, 64)  90.0%  bits and values           512    400
        Outputs are those of the plain file in every bit, on 16 samples.
        DECODE needs TensorFlow Lite Micro of 2025-10-23 or later.
    """

    path: str
    flash: int
    plain_flash: int
    arena: int
    plain_arena: int
    time_ratio: float
    compared_on: int
    weights: tuple[MicroWeight, ...]
    operators: tuple[str, ...]
    export: Export
    ram: int | None = None

    def headline(self) -> str:
        """Flash, RAM and time, beside those of the plain file."""
        return (
            f"{self.path}: {self.flash:,} bytes of flash, {self.plain_flash / self.flash:.1f}x "
            f"smaller; arena {self.arena:,} bytes, {self.arena / self.plain_arena:.1f} times as "
            f"large; time {self.time_ratio:.1f}x"
        )

    def tables(self) -> list[Table]:
        """How each weight is stored."""
        rows = [
            (
                _layer(w.name), str(w.shape), f"{w.sparsity:.1%}", w.form, f"{w.plain_bytes:,}",
                f"{w.stored_bytes:,}", w.reason,
            )
            for w in self.weights
        ]  # fmt: skip
        heads = ["weight", "shape", ">zeros", "form", ">plain, bytes", ">bytes", "why"]
        return [Table("", heads, rows, importance=[float(w.plain_bytes) for w in self.weights])]

    def notes(self) -> list[str]:
        """The comparison, and what the firmware needs."""
        found = [
            f"Outputs are those of the plain file in every bit, on {self.compared_on} samples."
        ]
        if self.operators:
            found.append(f"Operators for the resolver: {', '.join(self.operators)}.")
        if self.ram is None and self.arena > _MUCH * self.plain_arena:
            found.append(
                "The arena holds each weight while it is unpacked. Pass ram=, in bytes, to limit "
                "it; the file is then a little larger."
            )
        if any(weight.form != _PLAIN for weight in self.weights):
            found.append("DECODE needs TensorFlow Lite Micro of 2025-10-23 or later.")
        return found


def _layer(name: str) -> str:
    """A tensor's name without those of the model and of the operator, as narrow tables need."""
    name = flatbuffer.within_model(name)
    return name.rpartition("/")[0] or name


def export_micro(
    model: keras.Model,
    path: str | os.PathLike[str],
    *,
    samples: Any = None,
    activations: str = "int8",
    ram: int | None = None,
    flash: int | None = None,
    header: str | os.PathLike[str] | None = None,
    tolerance: float | None = None,
    progress: bool = True,
) -> MicroExport:
    """Write a file for TensorFlow Lite Micro that stores pruned weights in less flash.

    The file computes in integers, as `export_litert` writes it with `activations`. Weights with
    zeros, or with few distinct values, are stored encoded, and unpacked by the operator DECODE
    into the arena just before they are used. This saves flash but takes RAM: the arena grows by
    the largest unpacked weight, unless larger activations are in use elsewhere. The scales of
    biases, which TFLM does not read, are left out of a file with encoded weights.

    The files with and without DECODE both run in TFLM's own interpreter, and their outputs must be
    bit-identical.

    Args:
        model: a built Keras 3 model.
        path: the file to write, ending in ".tflite".
        samples: typical inputs, as for `export_litert`; about 100 are required.
        activations: "int8" or "int16".
        ram: largest arena, in bytes. Large fully connected layers are then computed in parts, and
            weights whose unpacking does not fit stay plain. None: no limit.
        flash: largest file, in bytes. Without `ram`, only as many weights are encoded as this
            needs, those that take the least RAM first. None: the smallest file.
        header: also write the file as an array, at this path, ending in ".h": for C11 and later
            and C++11 and later. The array has the name of the file, and NAME_len its length.
        tolerance: as for `export_litert`.
        progress: whether to show the current step.

    Returns:
        Flash, arena and time, with and without DECODE, and how each weight is stored.

    Raises:
        ValueError: for a wrong argument, or if the file does not fit into `flash` and `ram`.
        RuntimeError: if TFLM cannot run the file, or the conversion fails; no file is written.
        ImportError: without the extra "tflm", or TensorFlow.

    Example:
        >>> import keras_pruner as kp
        >>> layers = [keras.layers.Dense(128, activation="relu"), keras.layers.Dense(10)]
        >>> model = keras.Sequential([keras.Input((64,)), *layers])
        >>> report = kp.prune(model, 0.9)
        >>> x = np.random.default_rng(0).normal(size=(50, 64))
        >>> micro = export_micro(model, "micro.tflite", samples=x)
        >>> micro.flash < micro.plain_flash < micro.plain_flash + micro.arena
        True
    """
    check_installed("tflite_micro", "tflite-micro", "tflm")
    for name, limit in (("ram", ram), ("flash", flash)):
        if limit is not None:
            check_integer(name, limit, least=1)
    if activations not in ("int8", "int16"):
        raise ValueError(
            f'`activations` must be "int8" or "int16". Received: activations={activations!r}.'
        )
    if header is not None:
        check_destination(Path(header), ".h")
    with (
        atomic_write(path, ".tflite") as unfinished,
        show_progress("exporting", shown=progress) as announce,
    ):
        plain = unfinished.parent / "plain.tflite"
        announce("writing the file without DECODE")
        export = export_litert(
            model, plain, weights="int8", activations=activations, samples=samples,
            tolerance=tolerance, progress=False,
        )  # fmt: skip
        if export.hints:
            raise RuntimeError(f"{' '.join(export.hints)} No file was written.")
        inputs = _inputs(model, plain, samples)
        trials = [_Trial(unfinished, plain, plain, inputs)]
        announce("choosing the weights to encode")
        if ram is not None and trials[0].arena(trials[0].order) > ram:
            divided = unfinished.parent / "divided.tflite"
            content = flatbuffer.read(plain)
            if _divide_large(content, ram, trials[0].arena([])):
                _drop_unused(content)
                flatbuffer.write(content, divided)
                trials.append(_Trial(unfinished, divided, plain, inputs))
        picks = [(trial, _choose(trial, ram, flash)) for trial in trials]
        trial, chosen = min(picks, key=lambda pick: pick[0].write(pick[1]))
        measured = _checked(trial, chosen, ram, flash)
        if header is not None:
            with atomic_write(header, ".h") as text:
                array = _c_array(unfinished.read_bytes(), Path(header).stem, measured)
                text.write_text(array, encoding="ascii")
        size, plain_size = unfinished.stat().st_size, plain.stat().st_size
        rows, operators = trial.described(chosen), _resolver(trial.read(chosen))
    return MicroExport(
        str(path),
        size,
        plain_size,
        measured.arena,
        measured.plain_arena,
        measured.time_ratio,
        len(trial.inputs[0]),
        rows,
        operators,
        dataclasses.replace(export, path=str(path)),
        ram,
    )


def _resolver(content: Any) -> tuple[str, ...]:
    """The methods of TFLM's `MicroMutableOpResolver` that the firmware must call."""
    names: dict[str, None] = {}
    for each in content.subgraphs:
        graph = Graph(content, each)
        for source in graph.sources:
            code = content.operatorCodes[source.opcodeIndex]
            name = "DECODE" if code.customCode else graph.code(source)
            words = "".join(word.capitalize() for word in name.split("_"))
            names["Add" + re.sub("v2$", "V2", words.replace("2d", "2D"))] = None
    return tuple(names)


def _c_array(data: bytes, name: str, measured: "_Measured") -> str:
    """A file as an array in C."""
    name = re.sub(r"\W", "_", name, flags=re.ASCII)
    name = f"model_{name}" if name[:1].isdigit() else name
    numbers = [f"0x{byte:02x}" for byte in data]
    lines = [", ".join(numbers[i : i + 16]) for i in range(0, len(numbers), 16)]
    return (
        f"// A network for TensorFlow Lite Micro, {len(data)} bytes; it needs an arena of about\n"
        f"// {measured.arena} bytes.\n#pragma once\n\n"
        "#ifndef __cplusplus\n#include <stdalign.h>\n#endif\n\n"
        f"alignas(16) static const unsigned char {name}[] = {{\n    "
        + ",\n    ".join(lines)
        + f"}};\nstatic const unsigned int {name}_len = {len(data)};\n"
    )


# -------------------------------------------------------------------------- the choice


@dataclasses.dataclass(frozen=True)
class _Measured:
    """RAM and time that TFLM needs for the file, compared with the one without DECODE."""

    arena: int
    plain_arena: int
    time_ratio: float


def _candidates(graph: Graph, shared: set[int]) -> dict[int, tuple[np.ndarray, Encoded | None]]:
    """Each constant of rank 2 or more, and its smallest encoding; None if that saves nothing."""
    found = {}
    for index, tensor in enumerate(graph.tensors):
        data, shape = graph.data(index), graph.shape(index)
        dtype = flatbuffer.dtype_of(tensor)
        if dtype is None or len(shape) < 2 or not data.nbytes or not graph.users(index):
            continue
        weight: np.ndarray = data.view(dtype).reshape(shape)
        forms = [] if tensor.buffer in shared else _forms(weight, tensor)
        best = min(forms, key=lambda form: form.size, default=None)
        found[index] = weight, best if best is not None and best.size < data.nbytes else None
    return found


def _forms(weight: np.ndarray, tensor: Any) -> list[Encoded]:
    """The encodings that TFLM reads for a tensor."""
    zeros = flatbuffer.listed(tensor.quantization.zeroPoint)
    channels = len(flatbuffer.listed(tensor.quantization.scale))
    axis = tensor.quantization.quantizedDimension
    per_channel = axis == weight.ndim - 1 and channels > 1
    if any(zeros) or not (per_channel or axis == 0):
        return []
    tabular = table(weight, axis if channels > 1 else None)
    return [pruned(weight)] + ([] if tabular is None else [tabular])


class _Trial:
    """Writes the file with some of the weights encoded, and runs it in TFLM with the plain one.

    Attributes:
        inputs: one array for each input, of samples with a batch axis, as the file takes them.
        order: the weights that can be encoded, those that take the most RAM first.
    """

    def __init__(self, path: Path, source: Path, plain: Path, inputs: list[np.ndarray]) -> None:
        self._path, self._source, self._plain, self.inputs = path, source, plain, inputs
        content = flatbuffer.read(source)
        self._candidates = {
            (number, index): found
            for number, each in enumerate(content.subgraphs)
            for index, found in _candidates(Graph(content, each), _shared(content)).items()
        }
        costs = {
            key: _peak(Graph(content, content.subgraphs[key[0]]), key[1])
            for key, (_, form) in self._candidates.items()
            if form is not None
        }
        self.order = sorted(costs, key=lambda key: -costs[key])
        self._names = {
            (number, index): Graph(content, each).name(index)
            for number, each in enumerate(content.subgraphs)
            for index in range(len(each.tensors))
        }

    def read(self, chosen: Sequence[tuple[int, int]]) -> Any:
        """The file with these weights encoded."""
        content = flatbuffer.read(self._source)
        forms = {key: form for key in chosen if (form := self._candidates[key][1]) is not None}
        insert(content, forms)
        return content

    def write(self, chosen: Sequence[tuple[int, int]]) -> int:
        """Write the file with these weights encoded; returns its size in bytes."""
        content = self.read(chosen)
        _drop_unused(content)
        if chosen:
            _drop_scales_of_biases(content)
        flatbuffer.write(content, self._path)
        return self._path.stat().st_size

    def run(self) -> _Measured:
        """Run the file that was written last, and the plain one.

        Raises:
            RuntimeError: if TFLM cannot run one, or the outputs are not equal.
        """
        found, outputs = run_micro([self._plain, self._path], self.inputs)
        if not np.array_equal(outputs[0], outputs[1]):
            raise RuntimeError(
                "The outputs with DECODE differ from those without, so no file was written. "
                "Please report it with the version of tflite-micro."
            )
        plain, encoded = found["seconds"]
        plain_arena, arena = map(int, found["arena"])
        return _Measured(arena, plain_arena, encoded / plain)

    def arena(self, chosen: Sequence[tuple[int, int]]) -> int:
        """Write the file with these weights encoded; returns the bytes of its arena."""
        self.write(chosen)
        found, _ = run_micro([self._path], [array[:1] for array in self.inputs])
        return int(found["arena"][0])

    def described(self, chosen: Sequence[tuple[int, int]]) -> tuple[MicroWeight, ...]:
        """How each weight is stored."""
        rows = []
        for key, (weight, form) in self._candidates.items():
            is_encoded = key in chosen and form is not None
            reason = ""
            if not is_encoded:
                reason = "plain is smallest" if form is None else "left plain by the limits"
            rows.append(
                MicroWeight(
                    self._names[key],
                    weight.shape,
                    float(np.mean(weight == 0)),
                    form.form if is_encoded and form else _PLAIN,
                    weight.nbytes,
                    form.size if is_encoded and form else weight.nbytes,
                    reason,
                )
            )
        return tuple(rows)


def _choose(trial: _Trial, ram: int | None, flash: int | None) -> list[tuple[int, int]]:
    """The weights to encode: as many as `ram` allows; or, without it, as few as `flash` needs."""
    order = trial.order
    first = 0  # weights before this place in the order stay plain
    if ram is not None and trial.arena(order) > ram:
        first = _first_that(len(order), lambda n: trial.arena(order[n:]) <= ram)
    elif flash is not None and ram is None and trial.write(order) <= flash:
        # The last place whose file still fits: one before the first that does not.
        first = _first_that(len(order), lambda n: trial.write(order[n:]) > flash) - 1
        first = len(order) if trial.write([]) <= flash else first
    return order[first:]


def _checked(
    trial: _Trial, chosen: list[tuple[int, int]], ram: int | None, flash: int | None
) -> _Measured:
    """Write and run the file; raises if it does not fit."""
    size = trial.write(chosen)
    measured = trial.run()
    if ram is not None and measured.arena > ram:
        raise ValueError(
            f"`ram` must be at least {measured.arena:,} bytes, which the network needs without "
            f"any DECODE. Received: ram={ram:,}. Use a smaller input or fewer channels; zeros do "
            "not help."
        )
    if flash is not None and size > flash:
        rows = trial.described(chosen)
        largest = max(rows, key=lambda row: row.stored_bytes)
        raise ValueError(
            f"The file takes {size:,} bytes and does not fit. Received: flash={flash:,}. The "
            f"largest weight is {largest.name} with {largest.stored_bytes:,} bytes at "
            f"{largest.sparsity:.0%} zeros, stored {largest.form}. Use more zeros, or a larger "
            "`ram` if weights are left plain."
        )
    return measured


def _first_that(count: int, holds: Callable[[int], bool]) -> int:
    """The smallest n below `count` with holds(n), else `count`, by bisection.

    If holds(n), it must hold for all larger numbers too.
    """
    low, high = 0, count
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle + 1, high)
    return low


def _shared(content: Any) -> set[int]:
    """Buffers that several tensors share, or that a graph returns."""
    seen: set[int] = set()
    shared = set()
    for each in content.subgraphs:
        graph = Graph(content, each)
        shared |= {graph.tensors[i].buffer for i in graph.results}
        for tensor in graph.tensors:
            (shared if tensor.buffer in seen else seen).add(tensor.buffer)
    return shared


def _peak(graph: Graph, index: int) -> int:
    """Bytes in use while a weight is unpacked: the weight, and the activations at that time."""
    places = {id(source): place for place, source in enumerate(graph.sources)}
    live = _live(graph)
    return _size(graph, index) + max(live[places[id(user)]] for user in graph.users(index))


def _live(graph: Graph) -> list[int]:
    """Bytes of activations in use at each operator."""
    order = {id(source): place for place, source in enumerate(graph.sources)}
    begins = {i: order[id(source)] for i, source in graph.makers.items()}
    begins |= dict.fromkeys(graph.inputs, 0)
    ends = {i: max((order[id(s)] for s in graph.users(i)), default=-1) for i in begins}
    ends |= dict.fromkeys(graph.results, len(order))
    return [
        sum(_size(graph, i) for i in begins if begins[i] <= place <= ends[i])
        for place in range(len(order))
    ]


# --------------------------------------------------------------- large layers, in parts

_MOST_PARTS = 32
_LEAST_PART = 2048  # bytes; smaller parts cost more for their operators than they save
_PART_OVERHEAD = 1500  # bytes of the arena that the operators of the parts take, about


def _divide_large(content: Any, ram: int, plain_arena: int) -> bool:
    """Divide fully connected layers whose unpacked weights would not fit into `ram`.

    Each part computes some of the outputs, so the result is bit-identical.

    Returns:
        Whether a layer was divided.
    """
    graph = Graph(content)
    live = _live(graph)
    fixed = plain_arena - max(live, default=0)
    shared, found, operators = _shared(content), False, []
    for source, used in zip(graph.sources, live, strict=True):
        free = ram - fixed - used - _PART_OVERHEAD
        parts = _parts(graph, source, free, shared)
        operators += [source] if parts < 2 else _divided(content, graph, source, parts)
        found |= parts > 1
    content.subgraphs[0].operators = operators
    return found


def _parts(graph: Graph, source: Any, free: int, shared: set[int]) -> int:
    """The number of parts to divide an operator into; 1: leave it as it is."""
    if graph.code(source) != "FULLY_CONNECTED" or free < _LEAST_PART:
        return 1
    index = graph.inputs_of(source)[1]
    size = graph.data(index).nbytes
    parts = math.ceil(size / free)
    is_own = graph.tensors[index].buffer not in shared
    return parts if is_own and parts <= min(_MOST_PARTS, graph.shape(index)[0]) else 1


def _divided(content: Any, graph: Graph, source: Any, parts: int) -> list[Any]:
    """The operators of the parts, and the one that joins their outputs."""
    schema = flatbuffer.schema()
    tensors = content.subgraphs[0].tensors
    value, weight, *bias = graph.inputs_of(source)
    (output,) = graph.outputs_of(source)
    bounds = np.linspace(0, graph.shape(weight)[0], parts + 1).astype(int).tolist()
    operators, pieces = [], []
    for begin, end in itertools.pairwise(bounds):
        taken = [value] + [
            -1 if i < 0 else _rows(content, graph, i, begin, end) for i in (weight, *bias)
        ]
        piece = copy.copy(tensors[output])
        piece.shape = np.array([*graph.shape(output)[:-1], end - begin], np.int32)
        piece.shapeSignature = None
        tensors.append(piece)
        pieces.append(len(tensors) - 1)
        part = copy.copy(source)
        part.inputs = np.array(taken, np.int32)
        part.outputs = np.array(pieces[-1:], np.int32)
        operators.append(part)
    join, options = schema.OperatorT(), schema.ConcatenationOptionsT()
    options.axis = len(graph.shape(output)) - 1
    join.opcodeIndex = flatbuffer.operator_code(content, schema.BuiltinOperator.CONCATENATION, 2)
    join.builtinOptionsType = schema.BuiltinOptions.ConcatenationOptions
    join.builtinOptions = options
    join.inputs, join.outputs = np.array(pieces, np.int32), np.array([output], np.int32)
    return [*operators, join]


def _rows(content: Any, graph: Graph, index: int, begin: int, end: int) -> int:
    """The index of a new tensor with some rows of a constant one, with their scales."""
    tensor = graph.tensors[index]
    shape, data = graph.shape(index), graph.data(index)
    buffer = flatbuffer.schema().BufferT()
    buffer.data = data.reshape(shape[0], -1)[begin:end].reshape(-1).copy()
    content.buffers.append(buffer)
    found = copy.copy(tensor)
    found.buffer = len(content.buffers) - 1
    found.shape = np.array([end - begin, *shape[1:]], np.int32)
    found.name = f"{flatbuffer.name_of(tensor)}, rows {begin} to {end}".encode()
    if tensor.quantization is not None and len(flatbuffer.listed(tensor.quantization.scale)) > 1:
        found.quantization = copy.copy(tensor.quantization)
        for name in ("scale", "zeroPoint"):
            numbers = np.asarray(getattr(tensor.quantization, name))
            setattr(found.quantization, name, numbers[begin:end])
    content.subgraphs[0].tensors.append(found)
    return len(content.subgraphs[0].tensors) - 1


def _size(graph: Graph, index: int) -> int:
    kind = flatbuffer.name_of_type(graph.tensors[index].type)
    size = {"INT8": 1, "INT16": 2, "UINT8": 1, "BOOL": 1, "INT64": 8}.get(kind, 4)
    return size * math.prod(graph.shape(index))


def _drop_scales_of_biases(content: Any) -> None:
    """Leave out the scales of biases, 12 bytes for each: TFLM computes them from the others."""
    for each in content.subgraphs:
        graph = Graph(content, each)
        for source in graph.sources:
            if graph.code(source) in ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED"):
                for index in graph.inputs_of(source)[2:]:
                    if index >= 0 and graph.data(index).nbytes:
                        graph.tensors[index].quantization = None


def _drop_unused(content: Any) -> None:
    """Drop the tensors that nothing refers to any more, then the data of unused buffers."""
    _drop_unused_tensors(content)
    used = {tensor.buffer for graph in content.subgraphs for tensor in graph.tensors}
    used |= {entry.buffer for entry in content.metadata or []}
    for number, buffer in enumerate(content.buffers):
        if number not in used:
            buffer.data = None


def _drop_unused_tensors(content: Any) -> None:
    """Drop the tensors that nothing refers to, and renumber the others."""
    for graph in content.subgraphs:
        used = {*flatbuffer.listed(graph.inputs), *flatbuffer.listed(graph.outputs)}
        for source in graph.operators or []:
            used |= {*flatbuffer.listed(source.inputs), *flatbuffer.listed(source.outputs)}
            used |= {*flatbuffer.listed(source.intermediates)}
        kept = [i for i in range(len(graph.tensors)) if i in used]
        place = {old: new for new, old in enumerate(kept)} | {-1: -1}
        graph.tensors = [graph.tensors[i] for i in kept]
        for owner, names in [(graph, ("inputs", "outputs"))] + [
            (source, ("inputs", "outputs", "intermediates")) for source in graph.operators or []
        ]:
            for name in names:
                found = getattr(owner, name)
                if found is not None:
                    moved = [place[i] for i in flatbuffer.listed(found)]
                    setattr(owner, name, np.array(moved, np.int32))
        for signature in content.signatureDefs or []:
            if content.subgraphs[signature.subgraphIndex] is graph:
                for tensor in [*(signature.inputs or []), *(signature.outputs or [])]:
                    tensor.tensorIndex = place[tensor.tensorIndex]


# -------------------------------------------------------------------------- running it


def run_micro(
    paths: Sequence[Path], inputs: list[np.ndarray]
) -> tuple[dict[str, list[float]], list[np.ndarray]]:
    """Run files in TFLM's interpreter, taking turns.

    Args:
        paths: files with the same inputs and outputs.
        inputs: one array for each input, of samples with a batch axis, in the file's type.

    Returns:
        Two lists with a number for each file, "arena" in bytes and "seconds" of the fastest run;
        and for each file the bytes of all outputs.

    Raises:
        RuntimeError: with the interpreter's message, if it cannot run a file.
    """
    content = flatbuffer.read(paths[0])
    count = len(flatbuffer.listed(content.subgraphs[0].outputs))
    with tempfile.TemporaryDirectory() as scratch:
        given, made = Path(scratch, "inputs.npz"), Path(scratch, "outputs.npz")
        np.savez(given, *inputs)
        job = {"files": [str(path) for path in paths], "inputs": str(given)}
        program = Path(__file__).with_name("micro_interpreter.py")
        try:
            found = run_program(program, {**job, "outputs": str(made), "count": count})
        except RuntimeError as error:
            raise RuntimeError(f"TensorFlow Lite Micro cannot run the file. {error}") from None
        with np.load(made) as file:
            return found, [file[name] for name in file.files]


def _inputs(model: keras.Model, path: Path, samples: Any) -> list[np.ndarray]:
    """The first samples as the file takes them, in the order of its inputs."""
    runner = interpreter.load(path)
    takes = runner.get_signature_runner().get_input_details()
    place = {name: detail["index"] for name, detail in takes.items()}
    order = flatbuffer.listed(flatbuffer.read(path).subgraphs[0].inputs)
    names = sorted(takes, key=lambda name: order.index(place[name]))
    batches = batches_of(signature_of(model, None), samples)[:_RUNS]
    named = [by_name(list(takes), model, batch) for batch in batches]
    return [
        np.stack([interpreter.quantize(batch[name], takes[name]) for batch in named])
        for name in names
    ]
