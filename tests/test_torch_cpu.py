"""Sparse products on a CPU by PyTorch."""

import keras
import numpy as np
import pytest

import keras_pruner as kp
from keras_pruner.litert import cost_model, torch_kernels
from keras_pruner.litert.agreement import relative_error

L = keras.layers
on_torch = pytest.mark.skipif(keras.backend.backend() != "torch", reason="PyTorch's kernels")
# A table by which a sparse product always pays.
ALWAYS = kp.litert.SpeedupTable(
    "torch-cpu", "by hand",
    tuple(cost_model.Point(form, 1e6, 1, 0.0, 0.1) for form in cost_model.TORCH_FORMS),
)  # fmt: skip


def dense():
    return keras.Sequential([keras.Input((48,)), L.Dense(32, "relu"), L.Dense(5, use_bias=False)])


def sequence():
    x = keras.Input((6, 16))
    y = L.Dense(16, "relu")(L.EinsumDense("abc,cd->abd", (None, 12), bias_axes="d")(x))
    y = L.EinsumDense("abc,cde->abde", (None, 4, 8), bias_axes="de")(y)
    return keras.Model(x, L.EinsumDense("abcd,cde->abe", (None, 16), activation="tanh")(y))


def attention():
    x = keras.Input((6, 16))
    y = L.LayerNormalization()(x + L.MultiHeadAttention(4, 8)(x, x))
    return keras.Model(x, L.Dense(3)(L.GlobalAveragePooling1D()(L.Dense(32, "gelu")(y))))


def pointwise():
    x = keras.Input((9, 7, 8))
    y = L.Conv2D(16, 1, activation="relu")(x)
    y = L.Conv2D(12, 1, strides=2, padding="same", use_bias=False)(y)
    y = L.Conv2D(12, 3, padding="same")(y)
    return keras.Model(x, L.Conv2D(12, 1, groups=2)(y))


@on_torch
@pytest.mark.parametrize("build", [dense, sequence, attention, pointwise])
def test_outputs_are_equal_and_the_model_is_untouched(build):
    keras.utils.set_random_seed(0)
    model = build()
    kp.prune(model, 0.9)
    x = np.random.default_rng(0).normal(size=(200, *model.input_shape[1:])).astype("float32")
    before, expected = model.get_weights(), model.predict(x, verbose=0)
    fast = kp.torch_cpu.sparse_inference(model, speedups=ALWAYS, samples=x[:3])
    assert fast.error < 1e-5
    assert relative_error(expected, fast.model.predict(x, verbose=0)) < 1e-5
    products = {dense: 2, sequence: 4, attention: 6, pointwise: 2}[build]
    assert sum(row.is_sparse for row in fast.layers) == products
    for one, other in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    assert all("call" not in vars(layer) for layer in model._flatten_layers())
    assert f"{products} of {len(fast.layers)} kernels run sparse" in str(fast)


@on_torch
def test_what_does_not_pay_runs_dense_with_a_reason():
    model = dense()
    kp.prune(model, 0.5)
    found = kp.torch_cpu.sparse_inference(model)
    assert {row.is_sparse for row in found.layers} == {False}
    assert "pays only above" in found.layers[0].reason


@on_torch
def test_a_layer_that_does_more_than_its_class_is_left_alone():
    class Doubled(L.Dense):
        def call(self, inputs, training=None):
            return 2 * super().call(inputs)

    doubled = Doubled(8)
    model = keras.Sequential([keras.Input((16,)), doubled])
    assert not torch_kernels.is_product(doubled, None)
    with pytest.raises(ValueError, match="can save and load"):
        kp.torch_cpu.sparse_inference(model, speedups=ALWAYS)


@on_torch
def test_channels_first_and_rows_beyond_a_chunk():
    image = keras.Input((8, 20, 20))
    layer = L.Conv2D(6, 1, data_format="channels_first", activation="relu")
    model = keras.Model(image, layer(image))
    kp.prune(model, 0.8)
    found = kp.torch_cpu.sparse_inference(model, speedups=ALWAYS)
    assert [row.is_sparse for row in found.layers] == [True]
    assert "3200 rows" in found.layers[0].reason


def test_other_backends_and_tables_are_refused():
    if keras.backend.backend() != "torch":
        with pytest.raises(ValueError, match="set KERAS_BACKEND=torch"):
            kp.torch_cpu.sparse_inference(dense())
        return
    table = cost_model.speedups_of("litert-x86")
    with pytest.raises(ValueError, match=r"must be those of PyTorch.*Received: a table of 'litert"):
        kp.torch_cpu.sparse_inference(dense(), speedups=table)


@pytest.mark.backend_free
@pytest.mark.parametrize(
    ("equation", "summed"),
    [
        ("abc,cd->abd", "c"), ("abc,cde->abde", "c"), ("abcd,cde->abe", "cd"),
        ("...x,xy->...y", "x"),
        ("abc,dc->abd", ""), ("abc,bcd->abd", ""), ("acb,cd->abd", ""), ("abc,cd->adb", ""),
    ],
)  # fmt: skip
def test_equations_that_are_products_of_rows_with_a_matrix(equation, summed):
    layer = L.EinsumDense(equation, (None, 4)) if "." not in equation else None
    if layer is None:
        layer = type("Layer", (), {"equation": equation})()
    assert torch_kernels.summed_letters(layer) == summed


def test_advice_is_that_of_the_table():
    model = dense()
    always = kp.advise(model, ALWAYS, sparsity=0.9)
    assert {row.pattern for row in always.layers} == {kp.Unstructured()}
    assert always.speedup > 1.5
    never = tuple(cost_model.Point(form, 1e6, 1, 2.0, 1.0) for form in cost_model.TORCH_FORMS)
    none = kp.advise(model, kp.litert.SpeedupTable("torch-cpu", "m", never), sparsity=0.9)
    assert none.speedup == 1.0
    wide = keras.Sequential([keras.Input((1024,)), L.Dense(1024)])
    assert kp.advise(wide, "torch-cpu", sparsity=0.9, batch_size=8).speedup > 2
    assert kp.advise(wide, "torch-cpu", sparsity=0.5, batch_size=8).speedup == 1
    assert kp.advise(attention(), "torch-cpu", sparsity=0.5).speedup == 1


def test_a_table_of_pytorch_is_not_for_litert(tmp_path):
    with pytest.raises(ValueError, match=r"`runtime` must be one of .*'torch-cpu'"):
        kp.export_litert(dense(), tmp_path / "m.tflite", runtime=ALWAYS)


@pytest.mark.backend_free
def test_products_are_timed_against_the_fastest_dense_form():
    pytest.importorskip("torch")
    cases = [{"form": form, "width": 64, "rows": 16} for form in cost_model.TORCH_FORMS]
    found = torch_kernels.time_products(
        {"cases": cases, "sparsities": [0.9, 0.98], "seconds": 0.01}
    )
    assert np.shape(found) == (2, 2)
    assert np.all(np.array(found) > 0)
