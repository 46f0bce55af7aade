import shutil

import keras
import numpy as np
import pytest

from keras_pruner.litert import latency
from keras_pruner.litert.export import export_litert
from keras_pruner.litert.latency import benchmark, find_litertjs

pytest.importorskip("ai_edge_litert", reason='needs pip install "keras-pruner[litert]"')
pytest.importorskip("tensorflow", reason='needs pip install "keras-pruner[tensorflow]"')
if keras.backend.backend() != "tensorflow":
    pytest.skip("times files, whichever backend wrote them", allow_module_level=True)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A dense file and one with 95 % of its blocks zero, in one directory."""
    directory = tmp_path_factory.mktemp("files")
    layers = [keras.layers.Dense(512, activation="relu") for _ in range(3)]
    model = keras.Sequential([keras.Input((512,)), *layers])
    rng = np.random.default_rng(0)
    kernels = [keras.ops.convert_to_numpy(layer.kernel.value).copy() for layer in layers]
    for layer, kernel in zip(layers, kernels, strict=True):
        kernel[np.repeat(rng.random((128, 512)) < 0.95, 4, 0)] = 0
        layer.kernel.assign(kernel)
    sparse, dense = directory / "sparse.tflite", directory / "dense.tflite"
    export_litert(model, sparse)
    import keras_pruner.litert.convert as conversion

    conversion.convert(model, dense, [keras.InputSpec("float32", (1, 512))], "float32")
    return dense, sparse


def test_both_models_are_timed_in_turns_natively(files):
    measured = benchmark(*files, batch_sizes=[1, 8], seconds=0.3)
    assert [t.batch_size for t in measured.timings] == [1, 8]
    for t in measured.timings:
        assert min(t.dense_ms, t.pruned_ms) > 0
        assert t.speedup > 0
    assert all(t.difference < 1e-5 for t in measured.timings)
    assert "speed-up" in str(measured)


def test_wasm_runs_in_node(files):
    try:
        find_litertjs()
    except FileNotFoundError:
        pytest.skip("needs npm install @litertjs/core in this directory or above")
    if shutil.which("node") is None:
        pytest.skip("needs Node")
    timing = benchmark(*files, runtime="wasm", seconds=0.3).timings[0]
    assert timing.difference < 1e-5
    assert timing.speedup > 0


def test_missing_tools_are_named(files, tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match="npm install @litertjs/core"):
        benchmark(*files, runtime="wasm", node_modules=tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="needs Node 20"):
        benchmark(*files, runtime="wasm")


def test_wrong_arguments_say_what_is_right(files, tmp_path):
    with pytest.raises(ValueError, match='"native" or "wasm"'):
        benchmark(*files, runtime="gpu")
    with pytest.raises(ValueError, match="threads=1"):
        benchmark(*files, runtime="wasm", threads=2)
    with pytest.raises(ValueError, match="`threads` must be an integer of at least 1"):
        benchmark(*files, threads=0)
    other = keras.Sequential([keras.Input((7,)), keras.layers.Dense(3)])
    export_litert(other, tmp_path / "other.tflite")
    with pytest.raises(ValueError, match="must have the same inputs"):
        benchmark(files[0], tmp_path / "other.tflite")


@pytest.mark.parametrize("outputs", [[[1.0, 2.0], [3.0]], [[3.0], [1.0, 2.01]]], ids=str)
def test_outputs_of_another_build_may_come_in_another_order(monkeypatch, outputs):
    monkeypatch.setattr(latency, "_natively", lambda _: {"outputs": [[[1.0, 2.0], [3.0]]]})
    latency._check_against_native(["m.tflite"], [outputs])


@pytest.mark.parametrize("garbage", [[0.0, 7.5], [float("nan"), 2.0], [1.0]], ids=str)
def test_garbage_from_litertjs_is_an_error(monkeypatch, garbage):
    monkeypatch.setattr(latency, "_natively", lambda _: {"outputs": [[[1.0, 2.0]]]})
    with pytest.raises(RuntimeError, match=r"m.tflite computes something else in LiteRT.js"):
        latency._check_against_native(["m.tflite"], [[garbage]])
