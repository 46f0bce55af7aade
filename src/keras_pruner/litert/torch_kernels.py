"""Which layers PyTorch's sparse kernels can run on a CPU; as a program, their speed-ups.

`keras_pruner.torch_cpu` uses the kernels.
"""

import functools
import math
import statistics
import time
import warnings
from typing import Any

import keras
import numpy as np

from keras_pruner.litert.child_process import answer, read_job, tell
from keras_pruner.litert.layer_shapes import positions_of_output, shape_of
from keras_pruner.model_weights import WeightView


def is_product(layer: Any, view: WeightView) -> bool:
    """Whether a layer multiplies rows by its kernel as a matrix, and does nothing else.

    Classes are compared exactly: a subclass may do something else.
    """
    if type(layer) is keras.layers.Dense:
        return True
    if type(layer) is keras.layers.EinsumDense:
        return bool(summed_letters(layer))
    if type(layer) in (keras.layers.Conv1D, keras.layers.Conv2D, keras.layers.Conv3D):
        return math.prod(layer.kernel_size) == 1 and layer.groups == 1 and bool(view.taps)
    return False


def form_of(layer: Any) -> str:
    """The form whose speed-ups hold for a layer: dense convolutions are faster than products."""
    return "csr 1x1" if "conv" in type(layer).__name__.lower() else "csr"


def positions(layer: Any, holder: Any = None) -> int:
    """How many rows a layer multiplies for one sample; 1 where that is not known.

    Where the layer's own shape does not tell, it is taken to multiply one row for each position in
    the output of `holder`, the layer that it is a part of.
    """
    shape = shape_of(layer, "output" if form_of(layer) == "csr 1x1" else "input") or ()
    lead = len(shape) - len(summed_letters(layer) or "x")
    if getattr(layer, "data_format", "") == "channels_first":
        shape, lead = shape[1:], len(shape) - 1
    known = [size for size in shape[:lead] if size is not None]
    if len(known) == lead:
        return math.prod(known)
    return 1 if holder is None else positions_of_output(holder)


def summed_letters(layer: Any) -> str:
    """The letters an EinsumDense sums over, if it is a product of rows with a matrix; else ""."""
    equation = getattr(layer, "equation", None)
    if equation is None:
        return ""
    inputs, outputs = equation.replace(" ", "").split("->")
    rows, kernel = (part.removeprefix("...") for part in inputs.split(","))
    outputs = outputs.removeprefix("...")
    summed = "".join(letter for letter in rows if letter in kernel and letter not in outputs)
    lead, made = rows.removesuffix(summed), kernel.removeprefix(summed)
    if not summed or lead + summed != rows or summed + made != kernel or lead + made != outputs:
        return ""
    return summed


# Rows of a product. With more columns at once, PyTorch's kernel gets slower for each.
CHUNK = 32


def to_csr(matrix: np.ndarray) -> Any:
    """A sparse matrix, without PyTorch's warning that it calls them a beta feature.

    Its indices have 32 bits, as the kernel of oneMKL takes them: PyTorch would convert others in
    each product.
    """
    import torch

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")
        made = torch.from_numpy(np.ascontiguousarray(matrix)).to_sparse_csr()
        indices = (made.crow_indices().int(), made.col_indices().int())
        return torch.sparse_csr_tensor(*indices, made.values(), made.shape, check_invariants=False)


def product(matrix: Any, rows: Any) -> Any:
    """`rows @ matrix.T` for a sparse matrix, in equal chunks of rows."""
    import torch

    if len(rows) <= CHUNK:
        return (matrix @ rows.T).T
    parts = rows.chunk(math.ceil(len(rows) / CHUNK))
    return torch.cat([(matrix @ part.T).T for part in parts])


def time_products(job: dict[str, Any]) -> list[list[float]]:
    """Time sparse products against the fastest dense form, with one thread.

    Args:
        job: "cases", each with "form", "width" of the square weight and "rows"; "sparsities";
            "seconds" for each.

    Returns:
        For each case and each sparsity the sparse time over the dense one.
    """
    import torch

    torch.set_num_threads(1)
    found = []
    for case in job["cases"]:
        tell(f"timing {case['form']} of {case['width']}x{case['width']}, {case['rows']} rows")
        found.append(_time_case(case, job["sparsities"], job["seconds"]))
    return found


def _time_case(case: dict[str, Any], sparsities: list[float], seconds: float) -> list[float]:
    import torch

    rng = np.random.default_rng(0)
    width, rows = case["width"], case["rows"]
    weight = torch.from_numpy(rng.normal(size=(width, width)).astype("float32"))
    inputs = torch.from_numpy(rng.normal(size=(rows, width)).astype("float32"))
    with torch.inference_mode():
        if case["form"] == "csr 1x1":
            side = math.isqrt(rows)
            image = inputs[: side * side].T.reshape(1, width, side, side)
            image = image.contiguous(memory_format=torch.channels_last)
            filters = weight[:, :, None, None]
            dense = [lambda: torch.nn.functional.conv2d(image, filters)]
            inputs = inputs[: side * side]
        else:
            dense = [
                lambda: torch.nn.functional.linear(inputs, weight),
                lambda: inputs @ weight,
                lambda: (weight @ inputs.T).T,
            ]
        found = []
        for sparsity in sparsities:
            matrix = to_csr(weight.numpy() * (rng.random((width, width)) >= sparsity))
            calls = [functools.partial(product, matrix, inputs), *dense]
            found.append(_ratio(calls, seconds))
    return found


def _ratio(calls: list[Any], seconds: float) -> float:
    """Time of the first call over the fastest of the others; in turns, medians."""
    repeats = [max(1, round(0.005 / _seconds(call, 2))) for call in calls]
    times: list[list[float]] = [[] for _ in calls]
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times[0]) < 5:
        for call, count, each in zip(calls, repeats, times, strict=True):
            each.append(_seconds(call, count))
    first, *others = (statistics.median(each) for each in times)
    return first / min(others)


def _seconds(call: Any, count: int) -> float:
    start = time.thread_time()
    for _ in range(count):
        call()
    return max(1e-9, (time.thread_time() - start) / count)


if __name__ == "__main__":
    answer(time_products(read_job()))
