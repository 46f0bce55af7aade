import keras
import numpy as np
import pytest
from keras import layers

from keras_pruner.oneshot.linear_layers import linears, of_layer
from keras_pruner.oneshot.listen import listening, run
from keras_pruner.oneshot.trace import trace


def everything(count):
    return np.arange(count)


IMAGE, SERIES, VOLUME = (9, 8, 4), (11, 4), (5, 6, 4, 2)
LAYERS = [
    (lambda: layers.Dense(5), (7,)),
    (lambda: layers.Dense(5, activation="relu", use_bias=False), (3, 7)),
    (lambda: layers.EinsumDense("ab,bc->ac", output_shape=5, bias_axes="c"), (7,)),
    (lambda: layers.EinsumDense("...x,xy->...y", output_shape=5), (3, 7)),
    (lambda: layers.EinsumDense("abc,cde->abde", (None, 2, 3), bias_axes="de"), (4, 6)),
    (lambda: layers.EinsumDense("abde,dec->abc", (None, 5), bias_axes="c"), (4, 2, 3)),
    (lambda: layers.EinsumDense("abc,bcd->abd", (4, 5)), (4, 6)),
    (lambda: layers.EinsumDense("abc,cd->adb", (5, 4)), (4, 6)),
    (lambda: layers.Conv1D(6, 3, padding="causal", dilation_rate=2), SERIES),
    (lambda: layers.Conv1D(6, 4, strides=2, padding="same", activation="gelu"), SERIES),
    (lambda: layers.Conv2D(6, 3), IMAGE),
    (lambda: layers.Conv2D(6, (3, 2), strides=(2, 1), padding="same"), IMAGE),
    (lambda: layers.Conv2D(6, 3, dilation_rate=2, padding="same", use_bias=False), IMAGE),
    (lambda: layers.Conv2D(6, 3, groups=2, strides=2), IMAGE),
    (lambda: layers.Conv3D(3, 2, strides=(1, 2, 1), padding="same"), VOLUME),
    (lambda: layers.Conv1DTranspose(6, 3, strides=2), SERIES),
    (lambda: layers.Conv2DTranspose(6, 3), IMAGE),
    pytest.param(
        lambda: layers.Conv2DTranspose(6, 3, strides=2, padding="same", activation="tanh"),
        IMAGE,
        marks=pytest.mark.skipif(
            keras.__version__.startswith("3.12.") and keras.backend.backend() == "torch",
            reason="Keras 3.12 computes it in another way on torch, and warns of it",
        ),
    ),
    (lambda: layers.Conv2DTranspose(6, 4, strides=2, padding="same"), IMAGE),
    (lambda: layers.Conv2DTranspose(6, 2, strides=3), IMAGE),
    (lambda: layers.Conv3DTranspose(3, 2, strides=2, padding="same"), VOLUME),
    (lambda: layers.DepthwiseConv1D(3, depth_multiplier=2), SERIES),
    (lambda: layers.DepthwiseConv2D(3, 2, padding="same", depth_multiplier=2), IMAGE),
    (lambda: layers.SeparableConv1D(6, 3, padding="same"), SERIES),
    (lambda: layers.SeparableConv2D(6, 3, strides=2, depth_multiplier=2), IMAGE),
    (lambda: layers.TimeDistributed(layers.Dense(5)), (3, 7)),
    (lambda: layers.TimeDistributed(layers.Conv2D(5, 3, padding="same")), (2, 5, 6, 3)),
]


def input_for(shape, seed=0):
    return np.random.default_rng(seed).normal(size=(6, *shape)).astype("float32")


def randomize(layer):
    for number, weight in enumerate(layer.weights):
        weight.assign(np.random.default_rng(number).normal(size=weight.shape) * 0.3)


@pytest.mark.parametrize(("make", "shape"), LAYERS, ids=range(len(LAYERS)))
def test_rows_times_kernel_plus_bias_is_what_the_layer_computes(make, shape):
    layer = make()
    model = keras.Sequential([keras.Input(shape), layer])
    randomize(layer)
    (linear,) = linears(model)
    calls = []
    with listening({layer: calls.append}):
        run(model, input_for(shape))
    matrix = linear.view.to_matrix(keras.ops.convert_to_numpy(linear.kernel.value))
    rows = keras.ops.convert_to_numpy(linear.rows(calls[0], everything))
    outputs = np.matmul(rows, matrix)
    if linear.bias is not None:
        outputs += keras.ops.convert_to_numpy(linear.bias.value).reshape(len(matrix), 1, -1)
    if linear.activation is not None:
        outputs = keras.ops.convert_to_numpy(linear.activation(outputs))
    actual = keras.ops.convert_to_numpy(linear.outputs(calls[0].output, everything))
    assert actual.size == np.prod(calls[0].output.shape)
    np.testing.assert_allclose(outputs, actual, atol=2e-5)
    assert trace(model, input_for(shape)).reasons == {}


@pytest.mark.parametrize(("make", "shape"), LAYERS, ids=range(len(LAYERS)))
def test_a_kernel_comes_back_from_its_matrix(make, shape):
    model = keras.Sequential([keras.Input(shape), make()])
    (linear,) = linears(model)
    kernel = np.arange(np.prod(linear.kernel.shape)).reshape(linear.kernel.shape)
    matrix = linear.view.to_matrix(kernel)
    assert matrix.shape == linear.view.matrix_shape
    np.testing.assert_array_equal(linear.view.from_matrix(matrix), kernel)


def test_channels_first():
    if keras.backend.backend() == "tensorflow":
        pytest.skip("TensorFlow has no convolution with channels first on a CPU")
    layer = layers.Conv2D(6, 3, strides=2, padding="same", data_format="channels_first")
    model = keras.Sequential([keras.Input((4, 9, 8)), layer])
    assert trace(model, input_for((4, 9, 8))).reasons == {}


@pytest.mark.parametrize("axes", ["d", "b", "bd"])
def test_a_bias_that_is_not_one_number_for_each_output_takes_no_shift(axes):
    layer = layers.EinsumDense("abc,cde->abde", output_shape=(4, 5, 2), bias_axes=axes)
    keras.Sequential([keras.Input((4, 3)), layer])
    (linear,) = of_layer(layer)
    assert linear.bias is None


CELLS = {
    "lstm": lambda: layers.LSTM(4),
    "backwards": lambda: layers.LSTM(4, return_sequences=True, go_backwards=True),
    "gru": lambda: layers.GRU(4, return_state=True),
    "simple": lambda: layers.SimpleRNN(4, use_bias=False),
}


@pytest.mark.parametrize("kind", CELLS)
def test_a_recurrent_layer_multiplies_its_inputs_and_its_past_outputs(kind):
    layer, inputs = CELLS[kind](), keras.Input((5, 3))
    model = keras.Model(inputs, layer(inputs))
    randomize(layer)
    calls = []
    with listening({layer: calls.append}):
        run(model, input_for((5, 3)))
    of_inputs, of_past = linears(model)
    x = input_for((5, 3))[:, ::-1] if layer.go_backwards else input_for((5, 3))
    states = [np.zeros((6, 4), "float32")] * (2 if isinstance(layer, layers.LSTM) else 1)
    past = []
    for step in range(5):
        past.append(states[0])
        _, states = layer.cell(np.ascontiguousarray(x[:, step]), states)
        states = [keras.ops.convert_to_numpy(state) for state in states]
    seen = keras.ops.convert_to_numpy(of_past.rows(calls[0], everything))
    np.testing.assert_allclose(seen[0], np.stack(past, axis=1).reshape(-1, 4), atol=1e-5)
    seen = keras.ops.convert_to_numpy(of_inputs.rows(calls[0], everything))
    np.testing.assert_array_equal(seen[0], input_for((5, 3)).reshape(-1, 3))


def test_masked_steps_are_left_out():
    model = keras.Sequential(
        [keras.Input((5,)), layers.Embedding(7, 3, mask_zero=True), layers.LSTM(4)]
    )
    calls = []
    with listening({model.layers[1]: calls.append}):
        run(model, np.array([[1, 2, 0, 0, 0], [3, 4, 5, 6, 0]]))
    for linear in linears(model):
        assert linear.rows(calls[0], everything).shape[1] == 6


def test_cells_that_are_not_known_are_left_out():
    class Mine(layers.LSTMCell):
        pass

    unknown = (
        layers.RNN(Mine(4)),
        layers.LSTM(4, stateful=True),
        layers.RNN([layers.LSTMCell(4), layers.LSTMCell(4)]),
    )
    for layer in unknown:
        layer.build((2, 5, 3))
        assert list(of_layer(layer)) == []
    gru = layers.GRU(4, reset_after=False)
    gru.build((2, 5, 3))
    assert [linear.kernel.name for linear in of_layer(gru)] == ["kernel"]
