"""Laws of the channel graph: probing, counting, names and configurations, random graphs."""

import subprocess
import sys

import keras
import numpy as np
import pytest
from networks import NETWORKS, half_kept, inputs_of, randomise, zero_units

import keras_pruner as kp
from keras_pruner.channels.layer_rules import channels_of
from keras_pruner.model_graph import ModelGraph, functional_form

L = keras.layers


def test_multiplications_are_those_counted_by_hand():
    image = keras.Input((9, 9, 3))
    x = L.Conv2D(8, 3, strides=2, padding="same")(image)  # 5 x 5 positions
    x = L.DepthwiseConv2D(3, padding="same")(x)
    x = L.Conv2D(4, 3, groups=2)(x)  # 3 x 3 positions, 4 inputs each
    x = L.Conv2DTranspose(6, 2, strides=2)(x)
    cnn = keras.Model(image, L.Dense(5)(L.GlobalMaxPooling2D()(x)))
    by_hand = 25 * 27 * 8 + 25 * 9 * 8 + 9 * 36 * 4 + 9 * 4 * 4 * 6 + 6 * 5
    assert kp.channels.macs(cnn) == by_hand

    words = keras.Input((7,), dtype="int32")
    x = L.LSTM(6)(L.Embedding(20, 5)(words))
    assert kp.channels.macs(keras.Model(words, x)) == 7 * (5 * 24 + 6 * 24)

    tokens = keras.Input((4, 10))
    attention = keras.Model(tokens, L.MultiHeadAttention(2, 3)(tokens, tokens))
    assert kp.channels.macs(attention) == 4 * (4 * 10 * 6) + 2 * 4 * 4 * (3 + 3)


def test_an_unknown_length_counts_as_one_or_is_given():
    inputs = keras.Input((None, 4))
    model = keras.Model(inputs, L.Dense(3)(inputs))
    assert kp.channels.macs(model) == 12
    assert kp.channels.macs(model, keras.Input((5, 4))) == 60
    custom = NETWORKS["gated"]()
    assert kp.channels.macs(custom) == 8 * 16 + 8 * 12 + 6 * 10 + 10 * 2


OPERATIONS = {
    "relu": (keras.ops.relu, True),
    "swish": (lambda x: x * keras.ops.sigmoid(x), True),
    "softmax": (keras.ops.softmax, False),
    "reversed": (lambda x: keras.ops.flip(x, -1), False),
    "mean": (lambda x: x - keras.ops.mean(x, axis=-1, keepdims=True), False),
    "pooled": (lambda x: keras.ops.max_pool(x, 2, 2), True),
    "by position": (lambda x: x * np.arange(8, dtype="float32"), False),
    "sorted": (keras.ops.sort, False),
    "upsampled": (L.UpSampling2D(), True),
    "normalised": (L.UnitNormalization(), False),
    "lambda": (L.Lambda(lambda x: x + 1), True),
    "lambda by position": (
        L.Lambda(lambda x: keras.ops.concatenate([x[..., :3] * 2, x[..., 3:]], -1)),
        False,
    ),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_passes_channels_only_if_it_treats_each_alone(name):
    function, passes = OPERATIONS[name]
    inputs = keras.Input((4, 4, 3))
    x = function(L.Conv2D(8, 1, name="conv")(inputs))
    model = keras.Model(inputs, L.Dense(2)(L.GlobalAveragePooling2D()(x)))
    group = next(g for g in channels_of(ModelGraph(model)).groups if g.name == "conv")
    assert (group.reason == "") == passes


def test_an_operation_that_raises_is_said_to_raise():
    def refuses(x):
        raise TypeError("only symbols")

    inputs = keras.Input((4,))
    x = L.Lambda(refuses, output_shape=(8,), name="refuses")(L.Dense(8, name="below")(inputs))
    groups = channels_of(ModelGraph(keras.Model(inputs, L.Dense(2)(x)))).groups
    reason = next(g.reason for g in groups if g.name == "below")
    assert "raises TypeError on random numbers" in reason
    assert "only symbols" in reason


@pytest.mark.parametrize("name", ["residual", "shared_and_nested", "transformer", "lstm"])
def test_all_that_is_no_size_stays_in_the_configuration(name):
    model = randomise(NETWORKS[name]())
    channels = channels_of(ModelGraph(model))
    zero_units(channels, half_kept(channels))
    smaller = kp.shrink(model).model
    sizes = {"filters", "units", "num_heads", "output_dim", "output_shape", "batch_shape"}

    def compare(old, new):
        if isinstance(old, dict):
            for key in set(old) - sizes - {"build_config", "build_input_shape", "shared_object_id"}:
                compare(old[key], new[key])
        elif isinstance(old, list):
            for one, other in zip(old, new, strict=True):
                compare(one, other)
        elif not isinstance(old, int) or isinstance(old, bool):
            assert old == new

    for old, new in zip(model.layers, smaller.layers, strict=True):
        if not isinstance(old, keras.Model):
            compare(old.get_config(), new.get_config())
    assert [w.name for w in model.weights] == [w.name for w in smaller.weights]


def test_initializers_are_those_of_the_given_model():
    inputs = keras.Input((6, 8))
    x = L.Dense(8, kernel_initializer=keras.initializers.HeNormal(seed=3))(inputs)
    x = L.MultiHeadAttention(2, 3, kernel_initializer="orthogonal")(x, x)
    model = keras.Model(inputs, L.Dense(2)(L.Bidirectional(L.LSTM(4))(x)))
    with pytest.warns(UserWarning, match="Nothing could be removed"):
        smaller = kp.shrink(model).model
    pairs = zip(model._flatten_layers(), smaller._flatten_layers(), strict=True)
    for old, new in pairs:
        for name, value in vars(old).items():
            if isinstance(value, keras.initializers.Initializer):
                assert type(vars(new)[name]) is type(value)
                assert vars(new)[name].get_config() == value.get_config()


def test_a_smaller_model_opens_without_this_package(tmp_path):
    model = randomise(NETWORKS["residual"]())
    channels = channels_of(ModelGraph(model))
    zero_units(channels, half_kept(channels))
    smaller = kp.shrink(model).model
    x = inputs_of(model)
    smaller.save(tmp_path / "small.keras")
    np.save(tmp_path / "x.npy", x)
    code = (
        "import keras, numpy as np, sys; m = keras.saving.load_model('small.keras'); "
        "np.save('y.npy', keras.ops.convert_to_numpy(m(np.load('x.npy'), training=False))); "
        "assert 'keras_pruner' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    expected = keras.ops.convert_to_numpy(smaller(x, training=False))
    np.testing.assert_array_equal(np.load(tmp_path / "y.npy"), expected)


def random_network(seed):
    """Layers in a random order, with random branches."""
    random = np.random.default_rng(seed)
    inputs = keras.Input((8, 8, 3))
    tensors = [L.Conv2D(6, 1)(inputs)]
    for _ in range(8):
        x = tensors[random.integers(max(0, len(tensors) - 3), len(tensors))]
        kind = random.integers(9)
        width = int(x.shape[-1])
        if kind == 0:
            x = L.Conv2D(int(random.integers(3, 9)), 3, padding="same")(x)
        elif kind == 1:
            x = L.BatchNormalization()(x)
        elif kind == 2:
            x = L.ReLU()(x)
        elif kind == 3:
            x = L.DepthwiseConv2D(3, padding="same")(x)
        elif kind == 4:
            x = L.Add()([x, L.Conv2D(width, 1)(tensors[0])])
        elif kind == 5:
            x = L.Concatenate()([x, tensors[-1]])
        elif kind == 6:
            gate = L.Dense(width, activation="sigmoid")(L.GlobalAveragePooling2D(keepdims=True)(x))
            x = L.Multiply()([x, gate])
        elif kind == 7:
            x = L.Maximum()([x, L.Conv2D(width, 1, use_bias=False)(x)])
        else:
            x = L.PReLU(shared_axes=[1, 2])(L.SeparableConv2D(5, 3, padding="same")(x))
        tensors.append(x)
    x = L.Concatenate()([L.GlobalMaxPooling2D()(t) for t in tensors[-3:]])
    return keras.Model(inputs, L.Dense(3)(x))


@pytest.mark.parametrize("seed", range(6))
def test_random_networks_are_cut_exactly(seed):
    model = randomise(random_network(seed), seed)
    channels = channels_of(ModelGraph(model))
    kept = half_kept(channels, seed)
    zero_units(channels, kept)
    report = kp.shrink(model)
    for group, row in zip(channels.groups, report.groups, strict=True):
        assert row.after <= np.count_nonzero(kept[group.classes])


APPLICATIONS = [
    *(f"ConvNeXt{size}" for size in ("Tiny", "Small", "Base", "Large", "XLarge")),
    *(f"DenseNet{depth}" for depth in (121, 169, 201)),
    *(f"EfficientNetB{size}" for size in range(8)),
    *(f"EfficientNetV2{size}" for size in ("B0", "B1", "B2", "B3", "S", "M", "L")),
    "InceptionResNetV2", "InceptionV3",
    "MobileNet", "MobileNetV2", "MobileNetV3Large", "MobileNetV3Small",
    "NASNetLarge", "NASNetMobile",
    *(f"ResNet{depth}{version}" for depth in (50, 101, 152) for version in ("", "V2")),
    "VGG16", "VGG19", "Xception",
]  # fmt: skip
LARGER = {"InceptionV3": 75, "InceptionResNetV2": 75, "Xception": 71}


@pytest.mark.slow
@pytest.mark.parametrize("name", APPLICATIONS)
def test_half_of_an_application_is_removed_exactly(name, tmp_path):
    side = LARGER.get(name, 32)
    function = getattr(keras.applications, name)
    model = randomise(function(weights=None, input_shape=(side, side, 3), classes=10))
    channels = channels_of(ModelGraph(functional_form(model)))
    kept = half_kept(channels)
    zero_units(channels, kept)
    report = kp.shrink(model)  # compares the outputs, to 1e-5
    for group, row in zip(channels.groups, report.groups, strict=True):
        assert row.after <= np.count_nonzero(kept[group.classes]), group.name
    if not name.startswith("ConvNeXt"):  # layer normalizations hold their streams
        assert report.weights[0] > 3.5 * report.weights[1]
    report.model.save(tmp_path / "small.keras")
    loaded = keras.saving.load_model(tmp_path / "small.keras")
    images = inputs_of(model, 2)
    before, after = (m(images, training=False) for m in (report.model, loaded))
    np.testing.assert_array_equal(*map(keras.ops.convert_to_numpy, (before, after)))
