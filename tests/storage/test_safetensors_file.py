import json
import struct

import keras
import numpy as np
import pytest

from keras_pruner.model_file import FileError
from keras_pruner.model_weights import WeightView
from keras_pruner.patterns import NM
from keras_pruner.rules import Rules
from keras_pruner.storage.bitmaps import GROUPS, Groups, pack_mask, unpack_mask
from keras_pruner.storage.safetensors_file import load_sparse, save_sparse


def plain(shape):
    """The view of a kernel (..., inputs, outputs)."""
    rank = len(shape)
    return WeightView(shape, (), tuple(range(rank - 2)), (rank - 2,), (rank - 1,))


def model_with(kernel, dtype="float32", name="dense"):
    inputs, outputs = kernel.shape
    layer = keras.layers.Dense(outputs, dtype=dtype, name=name)
    model = keras.Sequential([keras.Input((inputs,)), layer])
    layer.kernel.assign(kernel)
    return model


def random_kernel(sparsity, shape=(64, 40), seed=0):
    rng = np.random.default_rng(seed)
    return (rng.normal(size=shape) * (rng.random(shape) >= sparsity)).astype("float32")


def kernel_of(model):
    return np.asarray(keras.ops.convert_to_numpy(model.layers[0].kernel.value))


def header_of(path):
    content = path.read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def rewrite(path, header, body):
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.9])
def test_weights_come_back_bit_identical(tmp_path, dtype, sparsity):
    model = model_with(random_kernel(sparsity), dtype)
    save_sparse(model, tmp_path / "w.safetensors")
    other = model_with(random_kernel(0.5, seed=1), dtype, name="of_another_name")
    load_sparse(other, tmp_path / "w.safetensors")
    mine, its = (keras.ops.convert_to_numpy(m.layers[0].kernel.value) for m in (model, other))
    np.testing.assert_array_equal(np.asarray(mine, "float32"), np.asarray(its, "float32"))


class Counts(keras.layers.Layer):
    """Integers of a type, which PyTorch may keep in another."""

    def build(self, _):
        self.counts = self.add_weight(
            shape=(9,), dtype=self.dtype, initializer="zeros", trainable=False, name="counts"
        )

    def call(self, x):
        return x


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "uint32", "int32"])
def test_integers_come_back(tmp_path, dtype):
    one, other = (keras.Sequential([keras.Input((3,)), Counts(dtype=dtype)]) for _ in range(2))
    one.layers[0].counts.assign(np.arange(9))
    save_sparse(one, tmp_path / "w.safetensors")
    load_sparse(other, tmp_path / "w.safetensors")
    counts = keras.ops.convert_to_numpy(other.layers[0].counts)
    np.testing.assert_array_equal(counts, np.arange(9))


def test_minus_zero_is_a_zero(tmp_path):
    kernel = np.full((64, 40), -0.0, "float32")
    save_sparse(model_with(kernel), tmp_path / "w.safetensors")
    other = model_with(random_kernel(0.0, seed=1))
    load_sparse(other, tmp_path / "w.safetensors")
    assert not np.signbit(kernel_of(other)).any()
    assert header_of(tmp_path / "w.safetensors")[0]["dense/kernel|values"]["shape"] == [0]


def test_the_size_is_that_of_a_bitmap_and_values(tmp_path):
    kernel = random_kernel(0.8, (512, 512))
    size = save_sparse(model_with(kernel), tmp_path / "w.safetensors")
    expected = kernel.size / 8 + 4 * np.count_nonzero(kernel) + 512 / 8
    assert expected <= size < expected + 1500


def test_two_to_four_takes_three_bits_for_four(tmp_path):
    kernel = np.ones((64, 32), "float32")
    kernel[2::4] = kernel[3::4] = 0
    save_sparse(model_with(kernel), tmp_path / "w.safetensors")
    header, _ = header_of(tmp_path / "w.safetensors")
    assert json.loads(header["__metadata__"]["weights"])[0][3] == "2:4"
    assert header["dense/kernel|index"]["shape"] == [64 * 32 // 4 * 3 // 8]
    other = model_with(random_kernel(0.5, (64, 32)))
    load_sparse(other, tmp_path / "w.safetensors")
    np.testing.assert_array_equal(kernel_of(other), kernel)


@pytest.mark.parametrize(
    "layer",
    [
        lambda: keras.layers.Conv2DTranspose(6, 3),
        lambda: keras.layers.Conv2D(6, 3, groups=2),
        lambda: keras.layers.EinsumDense("abc,dc->abd", (None, 6)),
        lambda: keras.layers.EinsumDense("abc,cde->abde", (None, 2, 3)),
    ],
)
def test_groups_are_found_along_the_inputs_of_any_layer(tmp_path, layer):
    layer = layer()
    shape = (4, 16) if isinstance(layer, keras.layers.EinsumDense) else (5, 5, 16)
    model = keras.Sequential([keras.Input(shape), layer])
    (target,) = Rules(NM(2, 4)).plan(model).targets
    kernel = keras.ops.convert_to_numpy(layer.kernel)
    mask = target.view.from_kernel(NM(2, 4)(np.abs(target.view.to_kernel(kernel))))
    layer.kernel.assign(kernel * mask)
    save_sparse(model, tmp_path / "w.safetensors")
    described = json.loads(header_of(tmp_path / "w.safetensors")[0]["__metadata__"]["weights"])
    assert described[0][3] == "2:4"
    layer.kernel.assign(kernel)
    load_sparse(model, tmp_path / "w.safetensors")
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(layer.kernel), kernel * mask)


@pytest.mark.backend_free
@pytest.mark.parametrize("groups", GROUPS, ids=repr)
@pytest.mark.parametrize("leading", [(), (3,), (2, 3)])
def test_groups_are_inverted(groups, leading):
    rng = np.random.default_rng(0)
    shape = (*leading, groups.m * 3, 5)
    order = np.argsort(rng.random((*leading, 5, 3, groups.m)))
    kept = np.moveaxis((order < groups.n).reshape(*leading, 5, -1), -1, -2)
    weight = np.where(kept, rng.normal(size=shape), 0).astype("float32")
    view = plain(shape)
    assert groups.fits(weight != 0, view)
    np.testing.assert_array_equal(groups.decode(*groups.encode(weight, view), view), weight)


@pytest.mark.backend_free
def test_groups_and_bitmaps_refuse_what_is_none():
    assert not Groups(2, 4).fits(np.ones((8, 2), bool), plain((8, 2)))
    assert not Groups(2, 4).fits(np.zeros((7, 2), bool), plain((7, 2)))
    values = np.zeros(2, "float32")
    with pytest.raises(ValueError, match="does not fit its values"):
        Groups(2, 4).decode(np.array([0b111], np.uint8), values, plain((4, 1)))
    with pytest.raises(ValueError, match="behind the last"):
        unpack_mask(np.array([0xFF], np.uint8), 7)
    with pytest.raises(ValueError, match="does not describe"):
        unpack_mask(pack_mask(np.ones(9, bool)), 8)


@pytest.mark.backend_free
def test_readers_of_safetensors_list_it(tmp_path):
    import safetensors.numpy

    kernel = random_kernel(0.9)
    save_sparse(model_with(kernel), tmp_path / "w.safetensors")
    tensors = safetensors.numpy.load_file(tmp_path / "w.safetensors")
    np.testing.assert_array_equal(tensors["dense/kernel|values"], kernel[kernel != 0])


@pytest.mark.backend_free
def test_what_does_not_belong_is_refused_before_anything_changes(tmp_path):
    path = tmp_path / "w.safetensors"
    kernel = random_kernel(0.9)
    model = model_with(kernel)
    save_sparse(model, path)
    header, body = header_of(path)
    weights = header["__metadata__"]["weights"]

    def refused(match, metadata=None, new_body=body, **tensors):
        changed = header["__metadata__"] | (metadata or {})
        rewrite(path, {"__metadata__": changed, **tensors}, new_body)
        with pytest.raises(FileError, match=match):
            load_sparse(model, path)
        np.testing.assert_array_equal(kernel_of(model), kernel)

    tensors = {key: value for key, value in header.items() if key != "__metadata__"}
    refused("not written by", {"format": "pt"}, **tensors)
    refused("has version '1'", {"version": "1"}, **tensors)
    refused("cannot be loaded", new_body=body[:-1], **tensors)
    refused("cannot be loaded", new_body=body + b"0", **tensors)
    refused("checksum", new_body=b"\xff" + body[1:], **tensors)
    refused("does not know", {"weights": weights.replace("bitmap", "9:10")}, **tensors)
    refused("the model has 2", {"weights": "[]"}, b"")
    huge = weights.replace("[64,40]", "[64000000,40000000]")
    refused("in the model", {"weights": huge}, **tensors)
    refused("does not fit its tensors", other={"dtype": "U8", "shape": [0], "data_offsets": [0, 0]},
            **tensors)  # fmt: skip
    values = tensors["dense/kernel|values"]
    for wrong in (
        {"data_offsets": [0, len(body)]},
        {"data_offsets": [values["data_offsets"][0] + 4, values["data_offsets"][1]]},  # a hole
        {"data_offsets": [values["data_offsets"][0], 1 << 60]},
        {"data_offsets": [values["data_offsets"][1], values["data_offsets"][0]]},
        {"shape": [1 << 40]},
        {"shape": [1 << 63, 1 << 63]},
        {"shape": [-1]},
        {"dtype": "F16"},
        {"dtype": "F99"},
        {"dtype": "I32"},
    ):
        refused("cannot be loaded", **{**tensors, "dense/kernel|values": values | wrong})
    index = tensors["dense/kernel|index"]
    overlapping = index | {"data_offsets": [0, index["shape"][0]]}
    refused("cannot be loaded", **{**tensors, "dense/kernel|index": overlapping})
    path.write_bytes(b"\xff" * 7 + b"\x7f")
    with pytest.raises(FileError, match="cannot be loaded"):
        load_sparse(model, path)
    path.write_bytes(b"")
    with pytest.raises(FileError, match="cannot be loaded"):
        load_sparse(model, path)
    with pytest.raises(FileError, match="does not exist"):
        load_sparse(model, tmp_path / "nowhere.safetensors")


@pytest.mark.backend_free
def test_a_flipped_bit_is_refused_or_changes_nothing(tmp_path):
    path = tmp_path / "w.safetensors"
    kernel = random_kernel(0.9)
    save_sparse(model_with(kernel), path)
    sound = path.read_bytes()
    rng, read = np.random.default_rng(0), 0
    for _ in range(300):
        damaged = bytearray(sound)
        place = rng.integers(8 * len(sound))
        damaged[place // 8] ^= 1 << (place % 8)
        path.write_bytes(damaged)
        model = model_with(np.zeros_like(kernel))
        try:
            load_sparse(model, path)
        except FileError:
            assert not kernel_of(model).any()
        else:
            np.testing.assert_array_equal(kernel_of(model), kernel)
            read += 1
    assert read < 30  # flips in the names, which are matched by position then


def test_another_architecture_is_refused(tmp_path):
    save_sparse(model_with(random_kernel(0.9)), tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match=r"\(64, 40\).*\(64, 41\)"):
        load_sparse(model_with(random_kernel(0.9, (64, 41))), tmp_path / "w.safetensors")
