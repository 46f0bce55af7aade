import tracemalloc

import keras
import numpy as np
import pytest

from keras_pruner.deploy import encoding, flatbuffer
from keras_pruner.deploy.sparse_file import load_sparse, save_sparse
from keras_pruner.deploy.verify import verify_litert

pytestmark = pytest.mark.backend_free
COUNT = 1000
MEMORY = 1 << 28  # bytes that reading a file of a few kilobytes may take


def mutations(content, count, seed=0):
    """Truncated, flipped, overwritten and inflated copies."""
    rng = np.random.default_rng(seed)
    for i in range(count):
        data = bytearray(content)
        kind = i % 4
        if kind == 0:
            data = data[: rng.integers(0, len(data))]
        elif kind == 1:
            for _ in range(rng.integers(1, 8)):
                data[rng.integers(0, len(data))] ^= 1 << rng.integers(0, 8)
        elif kind == 2:
            place = int(rng.integers(0, len(data) - 4))
            data[place : place + 4] = (2**31 - 1 - int(rng.integers(0, 3))).to_bytes(4, "little")
        else:
            place = int(rng.integers(0, len(data)))
            data[place:place] = rng.bytes(int(rng.integers(1, 64)))
        yield bytes(data)


def read_all(tmp_path, content, read, check):
    """Every mutation gives a ValueError, or something that passes `check`."""
    path = tmp_path / "mutated"
    tracemalloc.start()
    refused = 0
    for data in mutations(content, COUNT):
        path.write_bytes(data)
        try:
            result = read(path)
        except ValueError:
            refused += 1
        else:
            check(result)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < MEMORY
    return refused


def test_mutated_sparse_files(tmp_path):
    def small():
        return keras.Sequential([keras.Input((24,)), keras.layers.Dense(16, name="d")])

    model, other = small(), small()
    kernel = np.random.default_rng(0).normal(size=(24, 16)).astype("float32")
    kernel[np.abs(kernel) < 1] = 0
    model.layers[0].kernel.assign(kernel)
    save_sparse(model, tmp_path / "w.safetensors")

    def unchanged(_):
        loaded = keras.ops.convert_to_numpy(other.layers[0].kernel.value)
        np.testing.assert_array_equal(loaded, kernel)

    content = (tmp_path / "w.safetensors").read_bytes()
    refused = read_all(tmp_path, content, lambda path: load_sparse(other, path), unchanged)
    assert refused > 0.9 * COUNT


def test_mutated_tflite_files(tmp_path):
    pytest.importorskip("ai_edge_litert", reason='needs pip install "keras-pruner[litert]"')
    from test_flatbuffer import model_of, weight_of

    weights = [(weight_of((6, 8)), e) for e in (None, encoding.csr, encoding.blocks)]
    flatbuffer.write(model_of(*weights), tmp_path / "m.tflite")
    content = (tmp_path / "m.tflite").read_bytes()

    def sound(contents):
        assert all(0 <= w.sparsity <= 1 for w in contents.weights)
        str(contents)

    assert read_all(tmp_path, content, verify_litert, sound) > 0.3 * COUNT
