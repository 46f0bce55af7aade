import inspect

import keras
import numpy as np
import pytest

from keras_pruner.oneshot.prune import prune
from keras_pruner.quantization import check_zeros, merge_lora, zero_masks
from keras_pruner.rules import Rules
from keras_pruner.storage.keras_file import save_compressed

pytestmark = pytest.mark.one_backend


def pruned_model(seed=0):
    model = keras.Sequential(
        [
            keras.Input((6,), dtype="int32"),
            keras.layers.Embedding(20, 8),
            keras.layers.EinsumDense("abc,cd->abd", output_shape=(None, 16)),
            keras.layers.GlobalAveragePooling1D(),
            keras.layers.Dense(33, activation="relu"),
            keras.layers.Dense(5),
        ]
    )
    rng = np.random.default_rng(seed)
    for variable in model.trainable_variables:
        values = rng.normal(size=variable.shape).astype("float32")
        values[rng.random(values.shape) < 0.7] = 0
        variable.assign(values)
    return model


def kernel_of(layer):
    return np.array(keras.ops.convert_to_numpy(layer.kernel))


@pytest.mark.skipif(
    "filters" not in inspect.signature(keras.Model.quantize).parameters,
    reason="this Keras quantizes whole models only",
)
@pytest.mark.parametrize("mode", ["int8", "int4"])
@pytest.mark.parametrize("config", ["default", "per channel"])
def test_zeros_survive_pruning_quantizing_and_saving(tmp_path, mode, config):
    model = pruned_model()
    zeros = zero_masks(model)
    assert 0.6 < np.mean(np.concatenate([z.ravel() for z in zeros.values()])) < 0.8
    if mode == "int4" and config == "per channel":
        chosen = keras.quantizers.Int4QuantizationConfig(block_size=-1)
        model.quantize(config=chosen, filters=["dense", "embedding"])
    elif config == "per channel":
        pytest.skip("int8 has no other form")
    else:
        model.quantize(mode, filters=["dense", "embedding"])
    kept = check_zeros(zeros, model)
    assert len(kept) == 4
    assert all(k.lost == 0 and k.before == zeros[k.path].sum() for k in kept)
    save_compressed(model, tmp_path / "small.keras", compression="deflate")
    loaded = keras.saving.load_model(tmp_path / "small.keras")
    check_zeros(zeros, loaded)


def test_a_lost_zero_is_an_error():
    model = pruned_model()
    zeros = zero_masks(model)
    kernel = kernel_of(model.layers[-1])
    kernel[tuple(np.argwhere(kernel == 0)[0])] = 1e-3
    model.layers[-1].kernel.assign(kernel)
    with pytest.raises(ValueError, match=r"1 of .* zeros of .* are no longer zero"):
        check_zeros(zeros, model)
    with pytest.raises(ValueError, match="no longer has a kernel"):
        check_zeros({"elsewhere/kernel": np.ones((3, 3), bool)}, model)


def every_kind_of_kernel():
    """Two layers of one name among them."""
    image = keras.Input((8, 8, 3))
    x = keras.layers.SeparableConv2D(8, 3, name="separable")(image)
    x = keras.layers.Reshape((-1, 8))(x)
    x = keras.layers.LSTM(4, name="lstm")(x)
    inner = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8, name="same")])
    model = keras.Model(image, keras.layers.Dense(8, name="same")(inner(x)))
    return keras.models.clone_model(model)  # in a clone, the inner layer's path has no inner


def test_every_kernel_is_looked_at():
    model = every_kind_of_kernel()
    plan = Rules(overrides={"depthwise": 0.5, "": 0.5}).plan(model)
    assert set(zero_masks(model)) == {target.path for target in plan.targets}
    for target, variable in zip(plan.targets, plan.variables, strict=True):
        variable.assign(np.zeros(variable.shape))
        zeros = zero_masks(model)
        assert zeros[target.path].all()
        variable.assign(np.ones(variable.shape))
        with pytest.raises(ValueError, match=f"zeros of '{target.path}' are no longer zero"):
            check_zeros(zeros, model)


@pytest.mark.skipif(
    not hasattr(keras.layers, "ReversibleEmbedding"), reason="this Keras has no such layer"
)
@pytest.mark.parametrize("mode", ["int8", "int4"])
@pytest.mark.parametrize("size", [8, 33])
def test_both_tables_of_a_reversible_embedding_keep_their_zeros(mode, size):
    layer = keras.layers.ReversibleEmbedding(20, size, tie_weights=False)
    model = keras.Sequential([keras.Input((6,), dtype="int32"), layer])
    prune(model, 0.5)
    zeros = zero_masks(model)
    assert len(zeros) == 2
    layer.quantize(mode)
    assert all(kept.lost == 0 for kept in check_zeros(zeros, model))


def with_lora(seed=0):
    model = pruned_model(seed)
    rng = np.random.default_rng(1)
    for layer in (model.layers[0], model.layers[1], model.layers[3]):
        layer.enable_lora(2)
        for variable in layer.variables:
            if "lora" in variable.name:
                variable.assign(rng.normal(size=variable.shape))
    return model


def test_merging_without_zeros_changes_no_output():
    model = with_lora()
    x = np.random.default_rng(2).integers(0, 20, (4, 6))
    before = keras.ops.convert_to_numpy(model(x))
    merge_lora(model, keep_zeros=False)
    np.testing.assert_allclose(keras.ops.convert_to_numpy(model(x)), before, rtol=1e-4, atol=1e-4)


def test_merging_under_the_zeros_keeps_them_and_adds_the_rest(tmp_path):
    model = with_lora()
    layer = model.layers[3]
    stored = np.array(keras.ops.convert_to_numpy(layer._kernel.value))
    merged = kernel_of(layer)
    report = merge_lora(model)
    np.testing.assert_allclose(kernel_of(layer), np.where(stored == 0, 0, merged), rtol=1e-6)
    assert report.layers == ("embedding", "einsum_dense", "dense")
    assert report.discarded > 0
    assert report.kept_zeros >= np.sum(stored == 0) > 0
    assert not [v.path for v in model.variables if "lora" in v.name]
    assert layer.kernel.trainable
    Rules().plan(model)
    model.save(tmp_path / "merged.keras")
    loaded = keras.saving.load_model(tmp_path / "merged.keras")
    np.testing.assert_array_equal(kernel_of(loaded.layers[3]), kernel_of(layer))


def test_a_merged_model_trains_on():
    model = with_lora()
    model.compile("adam", loss="mse")
    x, y = np.ones((8, 6), "int32"), np.ones((8, 5), "float32")
    model.fit(x, y, verbose=0)
    merge_lora(model)
    before = kernel_of(model.layers[3])
    model.fit(x, y, verbose=0)
    assert (kernel_of(model.layers[3]) != before).any()


def unregistered(y, predicted):
    return keras.ops.mean((y - predicted) ** 2, axis=-1)


def test_a_loss_of_the_user_is_kept():
    model = with_lora()
    model.compile("sgd", loss=unregistered, metrics=[unregistered])
    x, y = np.ones((8, 6), "int32"), np.ones((8, 5), "float32")
    model.fit(x, y, verbose=0)
    merge_lora(model)
    assert set(model.evaluate(x, y, verbose=0, return_dict=True)) == {"loss", "unregistered"}
    model.fit(x, y, verbose=0)


def test_nothing_to_merge_is_an_error():
    with pytest.raises(ValueError, match="no layer with LoRA"):
        merge_lora(pruned_model())
    model = with_lora()
    model.layers[3].quantize("int8")
    with pytest.raises(ValueError, match="Merge LoRA first"):
        merge_lora(model)
