"""Measured speed-ups of sparse layers, and what lies between the measurements.

A sparse Dense layer takes time in proportion to its density, so one number describes it: the
gain times the density, `dense time / (sparse time / density)`. It depends on the runtime, the
batch size, and on whether the weights of the model fit into a cache. Measured with
`benchmarks/latency.py` on one x86-64 (Zen 5) core, and in LiteRT.js 2.5.3 under Node 20.
"""

import math
from collections.abc import Mapping

import numpy as np

#: Runtimes with rules of their own.
RUNTIMES = ("litert-x86", "litert-wasm", "litert-arm")
#: Without a measurement here: rules and x86 figures stand in.
NOT_MEASURED = ("litert-arm",)

_CACHED, _STREAMED = 2e6, 3.3e7  # bytes of weights in the models that were measured
_BATCHES = (1, 8, 64)
# form -> for each batch size: gain * density in cache, and streamed from memory.
_DENSE: Mapping[str, Mapping[str, tuple[tuple[float, float], ...]]] = {
    "native": {
        "block 1x4": ((0.29, 0.55), (0.165, 0.22), (0.118, 0.112)),
        "csr": ((0.088, 0.155), (0.048, 0.06), (0.035, 0.03)),
    },
    "wasm": {
        "block 1x4": ((0.25, 0.26), (0.16, 0.17), (0.12, 0.12)),
        "csr": ((0.0, 0.0), (0.0, 0.0), (0.0, 0.0)),
    },
}
# Sparsity of the 1x1 filters of a cluster -> gain of the whole cluster, batch 1, WebAssembly.
_CLUSTER = ((2 / 3, 1.35), (0.75, 1.8), (0.8, 2.2), (0.9, 3.6), (0.95, 5.1))


def dense_speedup(
    form: str, sparsity: float, model_bytes: float, runtime: str, batch_size: int = 1
) -> float:
    """How many times faster a Dense layer runs sparse than dense.

    Args:
        form: "block 1x4" or "csr".
        sparsity: fraction of blocks or weights that are zero.
        model_bytes: of all Dense weights that an inference reads.
        runtime: one of `RUNTIMES`.
        batch_size: rows per inference.
    """
    table = _DENSE["wasm" if runtime == "litert-wasm" else "native"][form]
    streamed = np.interp(math.log(model_bytes), [math.log(_CACHED), math.log(_STREAMED)], [0, 1])
    constants = [low + streamed * (high - low) for low, high in table]
    constant = np.interp(math.log(batch_size), np.log(_BATCHES), constants)
    return float(constant / max(1 - sparsity, 0.01))


def break_even(form: str, model_bytes: float, runtime: str, batch_size: int = 1) -> float:
    """The sparsity from which a sparse Dense layer is faster; 1.0 if it never is."""
    least = dense_speedup(form, 0.0, model_bytes, runtime, batch_size)
    return 1 - least if least > 0 else 1.0


def cluster_speedup(sparsity: float, runtime: str) -> float:
    """How many times faster an eligible cluster of convolutions runs; 1 where it runs dense.

    Args:
        sparsity: fraction of zeros over all its 1x1 filters.
        runtime: one of `RUNTIMES`. On x86 XNNPACK switches its sparse path off.
    """
    if runtime == "litert-x86" or sparsity <= _CLUSTER[0][0]:
        return 1.0
    sparsities, gains = zip(*_CLUSTER, strict=True)
    return float(np.exp(np.interp(sparsity, sparsities, np.log(gains))))
