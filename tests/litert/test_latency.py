import keras
import numpy as np
import pytest

from keras_pruner.litert.export import export_litert
from keras_pruner.litert.latency import benchmark

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

    conversion.convert(model, dense, [keras.InputSpec("float32", (1, 512))])
    return dense, sparse


def test_both_models_are_timed_in_turns_natively(files):
    measured = benchmark(*files, batch_sizes=[1, 8], seconds=0.3)
    assert [t.batch_size for t in measured.timings] == [1, 8]
    for t in measured.timings:
        assert min(t.dense_ms, t.pruned_ms) > 0
        assert t.speedup > 0
    assert all(t.difference < 1e-5 for t in measured.timings)
    assert "speed-up" in str(measured)


def test_wrong_arguments_say_what_is_right(files, tmp_path):
    with pytest.raises(ValueError, match="`threads` must be an integer of at least 1"):
        benchmark(*files, threads=0)
    other = keras.Sequential([keras.Input((7,)), keras.layers.Dense(3)])
    export_litert(other, tmp_path / "other.tflite")
    with pytest.raises(ValueError, match="must have the same inputs"):
        benchmark(files[0], tmp_path / "other.tflite")
