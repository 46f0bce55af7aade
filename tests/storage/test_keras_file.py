import inspect
import io
import subprocess
import sys
import zipfile

import h5py
import keras
import numpy as np
import pytest

from keras_pruner import model_file
from keras_pruner.storage.keras_file import save_compressed
from keras_pruner.storage.rounding import Halves, float8, shared_for_samples
from keras_pruner.storage.rounding_by_samples import keep_outputs


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
    size = save_compressed(empty, tmp_path / "empty.keras", compression="deflate").size
    (tmp_path / "empty.keras").unlink()
    return size


def weights_of(model):
    return [keras.ops.convert_to_numpy(v.value) for v in model.weights]


def test_it_opens_with_plain_keras_bit_identical(tmp_path):
    model = sparse_model()
    size = save_compressed(model, tmp_path / "small.keras").size
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
    exact = save_compressed(model, tmp_path / "32.keras", compression=compression).size
    small = save_compressed(
        model, tmp_path / "16.keras", weights="float16", compression=compression
    ).size
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
    with pytest.raises(
        ValueError,
        match=r"cannot be 'float16' for dense/kernel: .* at most 65504",
    ):
        save_compressed(model, tmp_path / "small.keras", weights="float16")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("stored", ["float8", "shared"])
@pytest.mark.parametrize("compression", ["lzma", "deflate", None])
def test_one_byte_a_weight(tmp_path, stored, compression):
    model = sparse_model()
    halved = save_compressed(model, tmp_path / "16.keras", weights="float16").size
    path = tmp_path / "8.keras"
    x = np.random.default_rng(1).normal(size=(16, 12, 12, 3)).astype("float32")
    found = save_compressed(model, path, weights=stored, compression=compression, samples=x)
    assert found.size == path.stat().st_size
    if compression == "lzma":
        assert found.size < 0.75 * halved
    loaded = model_file.load(path)
    kinds = ["bfloat16" if len(weight.shape) < 2 else stored for weight in found.rounded]
    assert [weight.stored for weight in found.rounded] == kinds
    errors = iter(weight for weight in found.rounded if len(weight.shape) > 1)
    for mine, its in zip(weights_of(model), weights_of(loaded), strict=True):
        assert its.dtype == mine.dtype
        if mine.ndim < 2:
            np.testing.assert_allclose(mine, its, rtol=1 / 256 if stored == "shared" else 0)
            continue
        np.testing.assert_array_equal(mine == 0, its == 0)
        error = next(errors)
        assert error.error == pytest.approx(np.linalg.norm(its - mine) / np.linalg.norm(mine), 1e-3)
        kept = mine != 0
        largest = (np.abs(its - mine)[kept] / np.abs(mine)[kept]).max()
        assert error.largest_error == pytest.approx(largest, 1e-3)
        if error.stored == "float8":
            assert error.error < 0.06
        elif mine.size >= 1024:
            assert len(np.unique(its)) <= 16
    mine, its = (keras.ops.convert_to_numpy(m(x)) for m in (model, loaded))
    difference = np.abs(mine - its).max() / np.abs(mine).max()
    assert found.difference == pytest.approx(difference, rel=0.01)
    assert 0 < difference < 0.3


@pytest.mark.parametrize("stored", ["float8", "shared"])
def test_keras_without_this_package_reads_one_byte_weights(tmp_path, stored):
    save_compressed(sparse_model(), tmp_path / "8.keras", weights=stored)
    weights = weights_of(model_file.load(tmp_path / "8.keras"))
    np.savez(tmp_path / "expected.npz", *weights)
    program = (
        "import sys; sys.modules['keras_pruner'] = None; import keras, numpy as np; "
        "model = keras.saving.load_model('8.keras'); expected = np.load('expected.npz'); "
        "assert all(np.array_equal(keras.ops.convert_to_numpy(v.value), expected[f'arr_{i}']) "
        "for i, v in enumerate(model.weights))"
    )
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, cwd=tmp_path)


@pytest.mark.parametrize(("form", "vectors"), [("float8", 0), ("shared", 7)])
def test_only_kernels_take_one_byte(tmp_path, form, vectors):
    x = keras.Input((6, 8))
    y = keras.layers.MultiHeadAttention(2, 4, name="attention")(x, x)
    y = keras.layers.DepthwiseConv1D(3, name="depthwise")(y)
    model = keras.Model(x, keras.layers.LayerNormalization()(y))
    rng = np.random.default_rng(0)
    for variable in model.weights:
        variable.assign(rng.normal(size=variable.shape))
    found = save_compressed(model, tmp_path / "8.keras", weights=form)
    stored = [weight.stored for weight in found.rounded]
    assert stored.count("bfloat16") == vectors
    assert len(stored) == vectors + 5
    loaded = model_file.load(tmp_path / "8.keras")
    for mine, its in zip(model.weights, loaded.weights, strict=True):
        same = [keras.ops.convert_to_numpy(v.value) for v in (mine, its)]
        is_vector = "bias" in mine.path or len(mine.shape) < 2
        assert np.allclose(*same, rtol=1 / 256 if vectors else 0, atol=0) == is_vector


@pytest.mark.backend_free
@pytest.mark.parametrize(("mean", "count"), [(15.1, 4), (16.1, 0)])
def test_vectors_that_need_more_digits_stay_exact(tmp_path, mean, count):
    """Means far from zero, in standard deviations, and vectors of unknown meaning."""
    data = keras.layers.Normalization()
    data.adapt(2030.1 + np.arange(16.0).reshape(2, 8))
    norm, slope = keras.layers.BatchNormalization(), keras.layers.PReLU()
    model = keras.Sequential([keras.Input((8,)), data, norm, slope])
    norm.moving_mean.assign(np.full(8, mean))
    slope.alpha.assign(np.full(8, 0.1))
    found = save_compressed(model, tmp_path / "8.keras", weights="shared").rounded
    assert len(found) == count
    loaded = model_file.load(tmp_path / "8.keras")
    for mine, its in zip(weights_of(model), weights_of(loaded), strict=True):
        if count == 0 or mine.flat[0] != np.float32(mean):
            np.testing.assert_array_equal(mine, its)


@pytest.mark.backend_free
def test_bfloat16_keeps_what_it_cannot_round():
    values = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 3e38, 1e-38, -1.5], "float32")
    found = Halves.of(values).values()
    np.testing.assert_allclose(found, values, rtol=1 / 256)
    nan = np.array([-1], "int32").view("float32")
    assert np.isnan(Halves.of(nan).values()).all()


@pytest.mark.parametrize("stored", ["float8", "shared"])
def test_samples_choose_a_rounding_that_keeps_the_outputs(tmp_path, stored):
    rng = np.random.default_rng(0)
    model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(64)])
    kernel = rng.normal(size=(64, 64)) * (rng.random((64, 64)) < 0.3)
    model.layers[0].kernel.assign(kernel)
    x = (rng.normal(size=(512, 8)) @ rng.normal(size=(8, 64))).astype("float32")
    outputs = x @ np.asarray(weights_of(model)[0])

    def error(samples):
        save_compressed(model, tmp_path / "8.keras", weights=stored, samples=samples)
        rounded = weights_of(model_file.load(tmp_path / "8.keras"))[0]
        np.testing.assert_array_equal(rounded == 0, weights_of(model)[0] == 0)
        return np.linalg.norm(x @ rounded - outputs)

    assert ("samples=x" in str(save_compressed(model, tmp_path / "8.keras", weights=stored))) == (
        stored == "shared"
    )
    assert error(x) < 0.7 * error(None)


@pytest.mark.backend_free
@pytest.mark.parametrize(("shape", "count"), [((128, 256), 8), ((128, 255), 16)])
def test_samples_choose_among_fewer_values_in_a_large_kernel(shape, count):
    rng = np.random.default_rng(0)
    kernel = rng.normal(size=shape) * (rng.random(shape) < 0.3)
    assert len(np.unique(shared_for_samples(kernel).values())) == count


@pytest.mark.backend_free
def test_coordinate_descent_never_makes_the_outputs_worse():
    rng = np.random.default_rng(0)
    for shape in ((1, 12, 5), (3, 9, 1), (1, 1, 4)):
        weights = rng.normal(size=shape) * (rng.random(shape) < 0.5)
        rounded = float8(weights)
        rows = rng.normal(size=(shape[0], 40, shape[1]))
        values = rounded.values()
        better = keep_outputs(weights, values, rounded.grid(), rows)
        errors = [np.linalg.norm(rows @ (each - weights)) for each in (values, better)]
        assert errors[1] <= errors[0] * (1 + 1e-3)
        np.testing.assert_array_equal(better == 0, weights == 0)
        assert (np.abs(better - weights) <= np.abs(weights) / 8 + 1e-12).all()
        np.testing.assert_array_equal(rounded.with_values(better).values(), better)


@pytest.mark.backend_free
def test_layers_without_weights_take_no_room(tmp_path):
    x = keras.Input((4,))
    y = x
    for _ in range(20):
        y = keras.layers.ReLU()(y)
    model = keras.Model(x, keras.layers.Dense(3, name="head")(y))
    save_compressed(model, tmp_path / "small.keras")
    with zipfile.ZipFile(tmp_path / "small.keras") as archive:
        content = io.BytesIO(archive.read("model.weights.h5"))
    with h5py.File(content) as file:
        assert list(file["layers"]) == ["dense"]
        assert file["layers/dense/vars"].attrs["name"] == "head"
    loaded = keras.saving.load_model(tmp_path / "small.keras")
    for mine, its in zip(weights_of(model), weights_of(loaded), strict=True):
        np.testing.assert_array_equal(mine, its)


@pytest.mark.backend_free
@pytest.mark.parametrize(("sparsity", "method"), [(0.8, "LZMA"), (0.995, "BZIP2")])
def test_the_best_coder_is_chosen(tmp_path, sparsity, method):
    rng = np.random.default_rng(0)
    model = keras.Sequential([keras.Input((512,)), keras.layers.Dense(512)])
    kernel = rng.normal(size=(512, 512))
    kernel *= np.abs(kernel) >= np.quantile(np.abs(kernel), sparsity)
    model.layers[0].kernel.assign(kernel)
    save_compressed(model, tmp_path / "8.keras", weights="float8")
    with zipfile.ZipFile(tmp_path / "8.keras") as archive:
        info = archive.getinfo("model.weights.h5")
    assert info.compress_type == getattr(zipfile, f"ZIP_{method}")
    loaded = keras.saving.load_model(tmp_path / "8.keras")
    np.testing.assert_array_equal(weights_of(loaded)[0] == 0, weights_of(model)[0] == 0)


@pytest.mark.parametrize("value", [40000.0, np.inf, np.nan])
def test_float8_refuses_what_it_cannot_hold(tmp_path, value):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(4, name="dense")])
    model.layers[0].kernel.assign(np.full((4, 4), value, "float32"))
    with pytest.raises(ValueError, match=r"cannot be 'float8' for dense/kernel: .* below 16384"):
        save_compressed(model, tmp_path / "small.keras", weights="float8")
    assert list(tmp_path.iterdir()) == []


def mutations(content, count, seed=0):
    """Damaged copies: flipped bits, lost and added bytes, zeroed and exchanged stretches."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        damaged = bytearray(content)
        place, length = int(rng.integers(len(content))), int(rng.integers(1, 64))
        match rng.integers(5):
            case 0:
                damaged[place] ^= 1 << int(rng.integers(8))
            case 1:
                del damaged[place : place + length]
            case 2:
                damaged[place:place] = rng.bytes(length)
            case 3:
                damaged[place : place + length] = bytes(len(damaged[place : place + length]))
            case _:
                damaged[place : place + length] = rng.bytes(len(damaged[place : place + length]))
        yield bytes(damaged)


@pytest.mark.backend_free
@pytest.mark.parametrize(
    ("stored", "count"),
    [
        ("float8", 50),
        ("shared", 50),
        pytest.param("float8", 2000, marks=pytest.mark.slow),
        pytest.param("shared", 2000, marks=pytest.mark.slow),
    ],
)
def test_a_damaged_file_is_an_error_or_reads_the_same(tmp_path, stored, count):
    """The archive's checksums cover the weights; what they do not cover changes no weight."""
    path = tmp_path / "8.keras"
    model = keras.Sequential([keras.Input((24,)), keras.layers.Dense(48)])
    save_compressed(model, path, weights=stored)
    sound = weights_of(model_file.load(path))
    refused = 0
    for damaged in mutations(path.read_bytes(), count):
        path.write_bytes(damaged)
        try:
            loaded = model_file.load(path)
        except model_file.FileError:
            refused += 1
        else:
            for mine, its in zip(sound, weights_of(loaded), strict=True):
                np.testing.assert_array_equal(mine, its)
    assert refused > 0.5 * count


def test_the_optimizer_comes_along_only_when_asked(tmp_path):
    model = sparse_model()
    model.compile("adam", loss="mse")
    model.fit(np.ones((4, 12, 12, 3)), np.ones((4, 256)), verbose=0)
    without = save_compressed(model, tmp_path / "without.keras", compression="deflate").size
    with_it = save_compressed(
        model, tmp_path / "with.keras", optimizer=True, compression="deflate"
    ).size
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
    exact = save_compressed(model, tmp_path / "exact.keras", compression="deflate").size
    model.quantize("int8", filters=["dense"])
    size = save_compressed(model, tmp_path / "int8.keras", compression="deflate").size
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
    assert content[start + extra + 4] == (2 * 5 + 2) * 9 + 1


@pytest.mark.backend_free
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"path": "model.h5"}, "must end with '.keras'"),
        ({"path": "nowhere/model.keras"}, "The directory of the file must exist"),
        (
            {"weights": "int7"},
            r"`weights` must be one of None, .*'float8'.* Received: weights='int7'",
        ),
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
