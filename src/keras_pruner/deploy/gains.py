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
#: Runtimes that unpack zeros when they load a model: smaller files at best, never faster.
DENSE_RUNTIMES = ("onnxruntime", "openvino")
#: Without a measurement here: rules and x86 figures stand in.
NOT_MEASURED = ("litert-arm",)

#: More than this fraction of all weights of a cluster's 1x1 filters must be zero.
LEAST_SPARSITY = 2 / 3

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
        "csr": ((0.08, 0.12), (0.05, 0.06), (0.03, 0.03)),
    },
}
# The same for a 1x1 convolution of an eligible cluster, which needs more than 2/3 zeros.
_CONVOLUTION = 0.46
# Nanoseconds per multiplication where everything is dense; only their proportions matter.
_COSTS: Mapping[str, Mapping[str, tuple[float, float]]] = {
    "native": {"dense": (0.088, 0.18), "conv": (0.0105, 0.0105), "depthwise": (0.05, 0.05)},
    "wasm": {"dense": (0.3, 0.55), "conv": (0.052, 0.052), "depthwise": (0.12, 0.12)},
}


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
    constants = [_between(model_bytes, pair) for pair in _DENSE[_site(runtime)][form]]
    constant = np.interp(math.log(batch_size), np.log(_BATCHES), constants)
    return float(constant / max(1 - sparsity, 0.01))


def break_even(form: str, model_bytes: float, runtime: str, batch_size: int = 1) -> float:
    """The sparsity from which a sparse Dense layer is faster; 1.0 if it never is."""
    least = dense_speedup(form, 0.0, model_bytes, runtime, batch_size)
    return 1 - least if least > 0 else 1.0


def convolution_speedup(sparsity: float, runtime: str) -> float:
    """How many times faster a 1x1 convolution of an eligible cluster runs; 1 where it is dense.

    Args:
        sparsity: fraction of zeros over all 1x1 filters of the cluster.
        runtime: one of `RUNTIMES`. On x86 XNNPACK switches its sparse path off.
    """
    if runtime == "litert-x86" or sparsity <= LEAST_SPARSITY:
        return 1.0
    return _CONVOLUTION / (1 - sparsity)


def cost(kind: str, multiplications: float, model_bytes: float, runtime: str) -> float:
    """Nanoseconds that a dense layer takes, as a share of the whole.

    Args:
        kind: "dense", "conv" or "depthwise".
        multiplications: of one inference.
        model_bytes: of all Dense weights that an inference reads.
        runtime: one of `RUNTIMES`.
    """
    return multiplications * _between(model_bytes, _COSTS[_site(runtime)][kind])


def _site(runtime: str) -> str:
    return "wasm" if runtime == "litert-wasm" else "native"


def _between(model_bytes: float, pair: tuple[float, float]) -> float:
    """Between what holds in cache and what holds when weights stream from memory."""
    places = [math.log(_CACHED), math.log(_STREAMED)]
    return float(np.interp(math.log(max(1.0, model_bytes)), places, pair))
