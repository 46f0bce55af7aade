import keras
import numpy as np
import pytest

from keras_pruner.litert.xnnpack_rewrite import missing, prepare_for_xnnpack

pytestmark = pytest.mark.one_backend

layers = keras.layers


def randomize(model, seed=0):
    rng = np.random.default_rng(seed)
    for variable in model.weights:
        if any(word in variable.path for word in ("gamma", "variance")):
            variable.assign(rng.uniform(0.8, 1.2, variable.shape))
        elif any(word in variable.path for word in ("beta", "mean", "bias")):
            variable.assign(rng.normal(size=variable.shape) * 0.1)
    return model


def small_cnn(
    size=32, channels=3, stem="same", pool=None, activation="relu6", depthwise=(3, 3), head="dense"
):
    image = keras.Input((size, size, channels))
    x = image
    if stem == "end":
        x = layers.ZeroPadding2D(((0, 1), (0, 1)))(x)
    if stem == "symmetric":
        x = layers.ZeroPadding2D(1)(x)
    padding = "same" if stem == "same" else "valid"
    x = layers.Conv2D(8, 3, strides=2, padding=padding, use_bias=False, name="stem")(x)
    x = layers.Activation(activation)(layers.BatchNormalization()(x))
    if pool:
        x = layers.MaxPooling2D(2, name="pool")(x)
    x = layers.DepthwiseConv2D(depthwise, padding="same", name="dw1")(x)
    x = layers.Conv2D(8, 1, name="pw1")(x)
    x = layers.Add()([x, layers.Conv2D(8, 1, name="pw2")(x)])
    x = layers.DepthwiseConv2D(depthwise, strides=2, padding=padding if stem == "same" else "same",
                               name="dw2")(x)  # fmt: skip
    x = layers.Conv2D(16, 1, name="pw3")(x)
    if head in ("conv", "wide"):
        x = layers.GlobalAveragePooling2D(keepdims=True)(x)
        kernel = 3 if head == "wide" else 1
        x = layers.Conv2D(5, kernel, padding="same", name="head")(layers.Dropout(0.1)(x))
        x = layers.Reshape((5,))(x)
    elif head == "average":
        x = layers.AveragePooling2D(x.shape[1], name="average")(x)
        x = layers.Dense(5)(layers.Flatten()(x))
    else:
        x = layers.Dense(5)(layers.GlobalAveragePooling2D()(x))
    return randomize(keras.Model(image, x))


@pytest.mark.parametrize(
    "options",
    [{}, {"stem": "end"}, {"channels": 1}, {"depthwise": (5, 5)}, {"head": "conv"},
     {"head": "wide"}, {"head": "average"}, {"size": 33, "stem": "same"}],
    ids=str,
)  # fmt: skip
def test_it_computes_the_same_and_nothing_is_in_the_way(options):
    model = small_cnn(**options)
    before = [keras.ops.convert_to_numpy(w.value) for w in model.weights]
    done = prepare_for_xnnpack(model)
    assert done.changes
    assert done.obstacles == ()
    assert done.difference < 1e-5
    changes, obstacles = missing(done.model)
    assert (changes, obstacles) == ((), ())
    for variable, value in zip(model.weights, before, strict=True):
        np.testing.assert_array_equal(keras.ops.convert_to_numpy(variable.value), value)
    x = np.random.default_rng(3).normal(size=(2, *model.input_shape[1:])).astype("float32")
    np.testing.assert_allclose(
        keras.ops.convert_to_numpy(done.model(x)),
        keras.ops.convert_to_numpy(model(x)),
        atol=1e-4,
    )


def test_zeros_stay_zeros_and_it_can_be_saved(tmp_path):
    model = small_cnn(head="conv")
    kernel = keras.ops.convert_to_numpy(model.get_layer("pw3").kernel.value).copy()
    kernel[kernel < 0] = 0
    model.get_layer("pw3").kernel.assign(kernel)
    done = prepare_for_xnnpack(model)
    rewritten = done.model.get_layer("pw3").kernel.value
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(rewritten), kernel)
    done.model.save(tmp_path / "m.keras")
    loaded = keras.saving.load_model(tmp_path / "m.keras")
    x = np.ones((1, 32, 32, 3), "float32")
    np.testing.assert_array_equal(
        keras.ops.convert_to_numpy(loaded(x)), keras.ops.convert_to_numpy(done.model(x))
    )


@pytest.mark.parametrize(
    ("options", "obstacle"),
    [
        ({"pool": True}, "pool: MaxPooling2D"),
        ({"activation": "mish"}, "activation 'mish'"),
        ({"channels": 4}, "not 3 channels"),
        ({"depthwise": (7, 7)}, "depthwise convolution 7x7"),
        ({"size": 35, "stem": "end"}, "needs even sizes"),
    ],
)
def test_what_is_in_the_way_is_named(options, obstacle):
    done = prepare_for_xnnpack(small_cnn(**options))
    assert any(obstacle in line for line in done.obstacles), done.obstacles
    assert obstacle in str(done)


def test_layers_behind_the_output_are_no_part_of_a_model_that_is_cut_off():
    whole = small_cnn(head="conv")
    (pool,) = (x for x in whole.layers if isinstance(x, layers.GlobalAveragePooling2D))
    done = prepare_for_xnnpack(keras.Model(whole.input, pool.output))
    assert done.model.output_shape == pool.output.shape
    assert not any("Dense" in change for change in done.changes)


def test_a_model_of_the_layers_of_another_is_rewritten_like_it():
    first = keras.Sequential(
        [
            keras.Input((32, 32, 3)),
            layers.ZeroPadding2D(((0, 1), (0, 1))),
            layers.Conv2D(8, 3, strides=2),
            layers.GlobalAveragePooling2D(),
            layers.Dense(5),
        ]
    )
    again = keras.Sequential([keras.Input((32, 32, 3)), *first.layers])
    assert missing(again) == missing(first)
    assert missing(first)[1] == ()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["MobileNet", "MobileNetV2"])
def test_stock_mobilenets_come_out_eligible(name):
    build = getattr(keras.applications, name)
    model = build(
        weights=None, input_shape=(64, 64, 3), alpha=0.35 if "2" in name else 0.25, classes=10,
        classifier_activation=None,
    )  # fmt: skip
    done = prepare_for_xnnpack(randomize(model))
    assert done.obstacles == ()
    assert done.difference < 1e-4
    assert missing(done.model) == ((), ())


def test_models_that_are_no_image_graph_are_refused():
    with pytest.raises(ValueError, match="of known size"):
        prepare_for_xnnpack(keras.Sequential([keras.Input((None, None, 3)), layers.Conv2D(3, 3)]))


def test_layers_in_nested_models_are_rewritten():
    body = [
        layers.ZeroPadding2D(((0, 1), (0, 1))),
        layers.Conv2D(4, 3, strides=2, name="stem"),
        layers.Conv2D(4, 1, name="pointwise"),
    ]
    inner = keras.Sequential([keras.Input((8, 8, 3)), *body], name="inner")
    image = keras.Input((8, 8, 3))
    model = keras.Model(image, layers.Dense(3)(layers.GlobalAveragePooling2D()(inner(image))))
    done = prepare_for_xnnpack(model)
    assert done.obstacles == ()
    assert done.changes[1] == "inner/stem: padding (1, 1) on both sides"
    assert {"inner_stem", "inner_pointwise"} <= {layer.name for layer in done.model.layers}


def test_a_convolution_head_behind_the_global_average_is_an_obstacle():
    image = keras.Input((8, 8, 3))
    x = layers.ZeroPadding2D(1)(image)
    x = layers.Conv2D(4, 3, strides=2)(x)
    x = layers.GlobalAveragePooling2D(keepdims=True, name="average")(x)
    head = layers.Conv2D(5, 1, name="head")(x)  # no Reshape follows: it cannot become Dense
    done = prepare_for_xnnpack(keras.Model(image, head))
    assert done.obstacles == (
        "head: a 1x1 convolution behind the global average: make it a Dense layer",
    )
