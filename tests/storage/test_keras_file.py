import inspect
import subprocess
import sys
import zipfile

import keras
import numpy as np
import pytest

from keras_pruner.storage.keras_file import save_compressed


def sparse_model(sparsity=0.8, seed=0):
    model = keras.Sequential(
        [
            keras.Input((12, 12, 3)),
            keras.layers.Conv2D(16, 3, activation="relu"),
            keras.layers.BatchNormalization(),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(256, activation="relu"),
            keras.layers.Dense(256),
        ]
    )
    rng = np.random.default_rng(seed)
    for variable in model.trainable_variables:
        values = rng.normal(size=variable.shape)
        if values.ndim > 1:
            values[rng.random(values.shape) < sparsity] = 0
        variable.assign(values.astype("float32"))
    return model


def most_bytes(model, tmp_path):
    """Mask entropy and 32 bits a survivor, in what the file takes when all weights are zero."""
    size = float(container_bytes(tmp_path))
    for weight in weights_of(model):
        zeros = np.mean(weight == 0)
        entropy = -sum(p * np.log2(p) for p in (zeros, 1 - zeros) if p > 0)
        size += weight.size * (entropy + (1 - zeros) * 32) / 8
    return size


def huffman_bytes(model, tmp_path):
    """The entropy of the bytes of kernels in float16, and the most that a Huffman code adds.

    That is 2 - h(p) - p bits for each of them, p being the share of the commonest
    (Gallager 1978).
    """
    kernels = [w.astype("float16").tobytes() for w in weights_of(model) if w.ndim > 1]
    content = np.frombuffer(b"".join(kernels), np.uint8)
    shares = np.unique(content, return_counts=True)[1] / content.size
    p = shares.max()
    assert p > 0.5
    binary = -p * np.log2(p) - (1 - p) * np.log2(1 - p)
    bits = -(shares * np.log2(shares)).sum() + 2 - binary - p
    rest = sum(w.nbytes for w in weights_of(model) if w.ndim < 2)
    return content.size * bits / 8 + rest + container_bytes(tmp_path)


def container_bytes(tmp_path):
    """What the file takes when all weights are zero."""
    empty = sparse_model(sparsity=1.0)
    empty.set_weights([np.zeros(w.shape) for w in empty.weights])
    size = save_compressed(empty, tmp_path / "empty.keras", compression="deflate")
    (tmp_path / "empty.keras").unlink()
    return size


def weights_of(model):
    return [keras.ops.convert_to_numpy(v.value) for v in model.weights]


def test_it_opens_with_plain_keras_bit_identical(tmp_path):
    model = sparse_model()
    size = save_compressed(model, tmp_path / "small.keras")
    model.save(tmp_path / "plain.keras")
    assert size == (tmp_path / "small.keras").stat().st_size
    assert size < most_bytes(model, tmp_path)  # exponents are alike, which pays for the rest
    loaded = keras.saving.load_model(tmp_path / "small.keras")
    for mine, its in zip(weights_of(model), weights_of(loaded), strict=True):
        np.testing.assert_array_equal(mine, its)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize("weights", [None, "float16"])
@pytest.mark.parametrize("optimizer", [True, False])
def test_minus_zeros_take_no_more_than_zeros(tmp_path, weights, optimizer):
    model = sparse_model()
    options = {"weights": weights, "optimizer": optimizer}
    save_compressed(model, tmp_path / "zeros.keras", **options)
    signs = weights_of(sparse_model(sparsity=0.0))
    pairs = zip(weights_of(model), signs, strict=True)
    model.set_weights([np.copysign(w, np.where(w == 0, sign, w)) for w, sign in pairs])
    assert any((np.signbit(w) & (w == 0)).any() for w in weights_of(model))
    save_compressed(model, tmp_path / "signed.keras", **options)
    # The weights alone: the time of saving is in the file, too.
    sizes = [
        zipfile.ZipFile(tmp_path / name).getinfo("model.weights.h5").compress_size
        for name in ("zeros.keras", "signed.keras")
    ]
    assert sizes[0] == sizes[1]
    loaded = weights_of(keras.saving.load_model(tmp_path / "signed.keras"))
    assert not any((np.signbit(w) & (w == 0)).any() for w in loaded)


def test_keras_needs_no_keras_pruner_to_open_it(tmp_path):
    save_compressed(sparse_model(), tmp_path / "small.keras")
    program = (
        "import sys, keras; sys.modules['keras_pruner'] = None; "
        f"keras.saving.load_model({str(tmp_path / 'small.keras')!r}).summary()"
    )
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)


@pytest.mark.parametrize("compression", ["lzma", "deflate"])
def test_float16_rounds_kernels_and_keeps_zeros(tmp_path, compression):
    model = sparse_model()
    exact = save_compressed(model, tmp_path / "32.keras", compression=compression)
    small = save_compressed(
        model, tmp_path / "16.keras", weights="float16", compression=compression
    )
    assert small < exact
    assert small < huffman_bytes(model, tmp_path)  # no worse than a code of single bytes
    loaded = keras.saving.load_model(tmp_path / "16.keras")
    for mine, its in zip(weights_of(model), weights_of(loaded), strict=True):
        assert its.dtype == mine.dtype
        rounded = mine.astype("float16").astype("float32") if mine.ndim > 1 else mine
        np.testing.assert_array_equal(rounded, its)


def test_float16_refuses_what_it_cannot_hold(tmp_path):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(4)])
    model.layers[0].kernel.assign(np.full((4, 4), 1e5, "float32"))
    with pytest.raises(ValueError, match="at most 65504"):
        save_compressed(model, tmp_path / "small.keras", weights="float16")
    assert list(tmp_path.iterdir()) == []


def test_the_optimizer_comes_along_only_when_asked(tmp_path):
    model = sparse_model()
    model.compile("adam", loss="mse")
    model.fit(np.ones((4, 12, 12, 3)), np.ones((4, 256)), verbose=0)
    without = save_compressed(model, tmp_path / "without.keras", compression="deflate")
    with_it = save_compressed(model, tmp_path / "with.keras", optimizer=True, compression="deflate")
    assert without < with_it / 1.5
    loaded = keras.saving.load_model(tmp_path / "with.keras")
    assert int(loaded.optimizer.iterations) == 1
    assert not keras.saving.load_model(tmp_path / "without.keras").compiled


@pytest.mark.skipif(
    "filters" not in inspect.signature(keras.Model.quantize).parameters,
    reason="this Keras quantizes whole models only",
)
def test_a_quantized_model_is_stored_quantized(tmp_path):
    model = sparse_model()
    exact = save_compressed(model, tmp_path / "exact.keras", compression="deflate")
    model.quantize("int8", filters=["dense"])
    size = save_compressed(model, tmp_path / "int8.keras", compression="deflate")
    assert size < exact / 2
    loaded = keras.saving.load_model(tmp_path / "int8.keras")
    for mine, its in zip(weights_of(model), weights_of(loaded), strict=True):
        np.testing.assert_array_equal(mine, its)


@pytest.mark.backend_free
def test_lzma_members_know_that_bytes_come_in_fours(tmp_path):
    save_compressed(sparse_model(), tmp_path / "small.keras")
    with zipfile.ZipFile(tmp_path / "small.keras") as archive:
        info = archive.getinfo("model.weights.h5")
        assert info.compress_type == zipfile.ZIP_LZMA
        assert archive.testzip() is None
        content = (tmp_path / "small.keras").read_bytes()
    start = info.header_offset + 30 + len(info.filename)
    extra = int.from_bytes(content[info.header_offset + 28 : info.header_offset + 30], "little")
    assert content[start + extra + 4] == (2 * 5 + 2) * 9 + 2


@pytest.mark.backend_free
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"path": "model.h5"}, "must end with '.keras'"),
        ({"path": "nowhere/model.keras"}, "The directory of the file must exist"),
        ({"weights": "int7"}, "`weights` must be one of None, 'float16'. Received: weights='int7'"),
        ({"compression": "zstd"}, "`compression` must be one of 'lzma', 'deflate'"),
        ({"model": 3}, "must be a Keras model"),
    ],
)
def test_wrong_arguments_say_what_is_right(tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message):
        save_compressed(**{"model": sparse_model(), "path": "small.keras", **arguments})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.backend_free
def test_a_destination_that_fails_keeps_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "small.keras"
    path.write_text("what was there")

    def full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("keras_pruner.storage.keras_file._pack", full_disk)
    with pytest.raises(OSError, match="No space left"):
        save_compressed(sparse_model(), path)
    assert path.read_text() == "what was there"
    assert list(tmp_path.iterdir()) == [path]
