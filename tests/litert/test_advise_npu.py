"""Advice for Ethos-U NPUs, from shapes, beside the estimates of Arm's compiler."""

import keras
import numpy as np
import pytest

import keras_pruner as kp
from keras_pruner.litert import npu_model

pytestmark = pytest.mark.one_backend

L = keras.layers


def deep(size=8, filters=128):
    """Two convolutions over few pixels with many channels, a sum and a head."""
    image = keras.Input((size, size, filters), name="image")
    x = L.Conv2D(filters, 3, padding="same", activation="relu", name="one")(image)
    y = L.BatchNormalization()(L.Conv2D(filters, 3, padding="same", name="two")(x))
    y = L.DepthwiseConv2D(3, padding="same", name="depthwise")(L.Add(name="sum")([x, y]))
    return keras.Model(image, L.Dense(10, name="head")(L.GlobalAveragePooling2D()(y)))


def rows(advice):
    return {row.path: row for row in advice.layers}


@pytest.mark.backend_free
def test_the_work_of_a_layer_by_hand():
    npu = npu_model.npu_of("ethos-u55-128")
    work = {w.name: w for w in npu_model.work_of(deep(), npu)}
    assert list(work) == ["one", "two", "sum", "depthwise", "global_average_pooling2d", "head"]
    # 8x4 units of 1x2 pixels, 9 taps of 4 times 32 inputs, 16 times 8 outputs, 4 cycles each
    assert work["one"].computing == pytest.approx(1.03 * 4 * 32 * 9 * 4 * 16)
    assert work["one"].read_cycles(npu, 0) == 3 * 3 * 128 * 128 + 10 * 128
    assert work["one"].read_cycles(npu, 0.5) == pytest.approx(0.63 * 3 * 3 * 128 * 128 + 1280)
    assert work["depthwise"].weights == 9 * 128
    assert work["sum"].cycles(npu) == pytest.approx(192 / 128 * 8 * 8 * 128)


def test_layers_that_wait_for_weights_gain_and_others_do_not():
    advice = kp.advise(deep(), "ethos-u55-128", sparsity=0.8)
    found = rows(advice)
    assert found["one/kernel"].pattern == kp.Unstructured()
    assert found["one/kernel"].speedup > 1.5
    assert "waits for its weights; from 62% zeros on" in found["one/kernel"].reason
    assert advice.speedup > 1.3
    kp.plan(deep(), **advice.settings())
    few = rows(kp.advise(deep(32, 16), "ethos-u55-128", sparsity=0.8))["one/kernel"]
    assert few.pattern is None
    assert few.reason == "computing takes longer than reading its weights"
    assert kp.advise(deep(), "ethos-u65-256", sparsity=0.9).speedup == 1.0
    assert "No layer runs faster" in str(kp.advise(deep(), "ethos-u65-256", sparsity=0.9))


def test_a_small_picture_counts_as_more_units_on_u85():
    """Vela 5.2 estimates 110,870 cycles for this convolution, when zeros make its weights small."""
    conv = keras.layers.Conv2D(256, 3, padding="same", use_bias=False)
    model = keras.Sequential([keras.Input((4, 4, 256)), conv])
    npu = npu_model.npu_of("ethos-u85-256")
    (work,) = npu_model.work_of(model, npu)
    assert work.compute_cycles(npu) == pytest.approx(110_870, rel=0.05)


def test_u85_gains_from_two_of_four():
    advice = kp.advise(deep(16), "ethos-u85-256", sparsity=0.8)
    found = rows(advice)["one/kernel"]
    assert found.pattern == kp.NM(2, 4)
    assert found.speedup == pytest.approx(2, abs=0.1)
    kp.plan(deep(16), **advice.settings())
    only = kp.advise(deep(16), "ethos-u55-128", pattern=kp.NM(2, 4))
    assert rows(only)["two/kernel"].pattern is None


@pytest.mark.backend_free
def test_two_of_four_halves_only_weights_that_come_in_fours_of_channels():
    npu = npu_model.npu_of("ethos-u85-256")
    image = keras.Input((16, 16, 1))
    x = L.Conv2D(512, (10, 4), padding="same", name="one_channel")(image)
    x = L.Conv2D(32, 1, name="pointwise")(L.DepthwiseConv2D(3, name="depthwise")(x))
    model = keras.Model(image, L.Dense(4)(L.GlobalAveragePooling2D(name="pool")(x)))
    work = {w.name: w for w in npu_model.work_of(model, npu)}
    for name in ("one_channel", "depthwise", "pool"):
        assert work[name].cycles(npu, two_of_four=True) == work[name].cycles(npu)
    pointwise = work["pointwise"]
    assert pointwise.compute_cycles(npu, two_of_four=True) == pytest.approx(
        pointwise.compute_cycles(npu) / 2
    )


@pytest.mark.backend_free
def test_bytes_fall_with_zeros():
    sizes = [npu_model.bytes_of_weight(s) for s in np.linspace(0, 1, 50)]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] == 1


def test_layers_without_an_estimate_are_named():
    x = keras.Input((6, 16))
    model = keras.Model(x, L.Dense(4)(L.MultiHeadAttention(2, 8, name="attention")(x, x)))
    assert "Without an estimate, counted as no time" in str(kp.advise(model, "ethos-u55-128"))


@pytest.mark.backend_free
def test_what_is_not_known_is_refused():
    with pytest.raises(ValueError, match=r"`accelerator` must be one of .*'ethos-u55-1'"):
        npu_model.npu_of("ethos-u55-1")
    open_model = keras.Sequential([keras.Input((None, None, 3)), L.Conv2D(4, 3)])
    with pytest.raises(ValueError, match="Build the model with the input shape of the device"):
        kp.advise(open_model, "ethos-u55-128")


@pytest.mark.slow
@pytest.mark.tensorflow
@pytest.mark.parametrize("accelerator", ["ethos-u55-128", "ethos-u65-256", "ethos-u85-256"])
@pytest.mark.parametrize("size", [8, 16])
def test_advice_is_within_a_quarter_of_the_compilers_estimate(tmp_path, accelerator, size):
    for package in ("ai_edge_litert", "tensorflow", "ethosu"):
        pytest.importorskip(package)
    x = np.random.default_rng(0).normal(size=(20, size, size, 128)).astype("float32")
    integers = {"weights": "int8", "activations": "int8", "samples": x, "progress": False}
    model = deep(size)
    advice = kp.advise(model, accelerator, pattern=kp.Unstructured(), sparsity=0.8)
    kp.export_litert(model, tmp_path / "dense.tflite", **integers)
    kp.prune(model, 0.8, allocation="uniform")
    kp.export_litert(model, tmp_path / "pruned.tflite", **integers)
    files = tmp_path / "pruned.tflite", accelerator
    found = kp.litert.ethos_u(*files, dense=tmp_path / "dense.tflite")
    assert advice.speedup == pytest.approx(found.speedup, rel=0.25)
