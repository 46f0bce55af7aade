import importlib

import keras
import numpy as np
import pytest

from keras_pruner.litert import flatbuffer, samples
from keras_pruner.litert.export import export_litert
from keras_pruner.litert.inspection import inspect

pytest.importorskip("ai_edge_litert", reason='needs pip install "keras-pruner[litert]"')
pytest.importorskip("tensorflow", reason='needs pip install "keras-pruner[tensorflow]"')

# Elsewhere each conversion starts a process; what must differ between backends is tested below.


def model_with_zeros(block=False, sparsity=0.9, seed=0):
    """One 1x1 convolution and two Dense layers, sparse in blocks of 4 inputs or anyhow."""
    model = keras.Sequential(
        [
            keras.Input((6, 6, 32), name="image"),
            keras.layers.Conv2D(64, 1, activation="relu"),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(96, activation="relu"),
            keras.layers.Dense(48),
        ]
    )
    rng = np.random.default_rng(seed)
    for variable in model.trainable_variables:
        values = rng.normal(size=variable.shape).astype("float32") / 4
        if values.ndim == 2 and block:
            zero = rng.random((values.shape[0] // 4, values.shape[1])) < sparsity
            values[np.repeat(zero, 4, 0)] = 0
        elif values.ndim >= 2:
            values[rng.random(values.shape) < sparsity] = 0
        variable.assign(values)
    return model


def saved_bytes(contents):
    """Float32 values left out, less a byte or two for each index and each row's segment."""
    saved = 0.0
    for weight in contents.weights:
        size, rows = np.prod(weight.shape), weight.shape[0]
        values = (1 - weight.sparsity) * size  # in blocks all four of them are zero, or none
        stored = values / (4 if weight.encoding == "block 1x4" else 1)
        saved += 4 * (size - values) - stored - 2 * (rows + 1)
    return saved


@pytest.mark.parametrize("block", [True, False], ids=["blocks", "unstructured"])
def test_a_float32_file_runs_sparse_and_computes_the_same(tmp_path, block):
    sparsity = 0.95 if block else 0.99
    done = export_litert(model_with_zeros(block, sparsity), tmp_path / "m.tflite")
    assert done.difference < 1e-5
    assert done.size == (tmp_path / "m.tflite").stat().st_size
    contents = inspect(tmp_path / "m.tflite")
    assert done.size <= done.dense_size - saved_bytes(contents) + 512 * len(contents.weights)
    forms = sorted((w.encoding, w.execution) for w in contents.weights)
    native = ("block 1x4" if block else "csr", "native sparse")
    assert forms == sorted([native, native, ("csr", "densified")])
    assert abs(contents.sparsity - sparsity) < 0.02
    assert "native sparse" in str(done)
    assert "not eligible" in str(contents)


# The combinations that LiteRT computes wrongly, or does not run, are routed around.
@pytest.mark.tensorflow
@pytest.mark.parametrize("block", [True, False], ids=["blocks", "unstructured"])
@pytest.mark.parametrize(
    ("weights", "tolerance", "execution"),
    [("float16", 5e-3, {"densified"}), ("int8", 5e-2, {"dense"})],
)
def test_bad_combinations_come_out_correct(tmp_path, block, weights, tolerance, execution):
    done = export_litert(model_with_zeros(block), tmp_path / "m.tflite", weights=weights)
    assert done.difference < tolerance
    matrices = [w for w in inspect(tmp_path / "m.tflite").weights if len(w.shape) == 2]
    assert {w.execution for w in matrices} == execution


@pytest.mark.tensorflow
def test_few_zeros_are_stored_dense_and_say_why(tmp_path):
    done = export_litert(model_with_zeros(sparsity=0.1), tmp_path / "m.tflite")
    assert {w.reason for w in done.weights} == {"sparse would be larger"}
    assert done.size <= done.dense_size + 64 * len(done.weights)  # alignment of the buffers
    dense = export_litert(model_with_zeros(sparsity=0.0), tmp_path / "m.tflite")
    assert {w.reason for w in dense.weights} == {"no zeros"}


@pytest.mark.tensorflow
@pytest.mark.parametrize(("steps", "execution"), [(1, "native sparse"), (64, "densified")])
def test_a_dense_layer_over_a_sequence_takes_each_step_as_a_row(tmp_path, steps, execution):
    model = keras.Sequential([keras.Input((steps, 512)), keras.layers.Dense(512)])
    zero = np.random.default_rng(0).random((128, 512)) < 0.88  # 64 rows are slower sparse
    kernel = np.where(np.repeat(zero, 4, axis=0), 0, 0.1)
    model.layers[0].kernel.assign(kernel)
    (weight,) = export_litert(model, tmp_path / "m.tflite").weights
    assert weight.execution == execution


@pytest.mark.tensorflow
def test_a_table_of_an_embedding_is_in_the_report(tmp_path):
    words = keras.Input((8,), dtype="int32")
    model = keras.Model(words, keras.layers.Embedding(100, 16)(words))
    table = np.ones((100, 16))
    table[:90] = 0
    model.layers[1].embeddings.assign(table)
    (weight,) = export_litert(model, tmp_path / "m.tflite").weights
    assert (weight.shape, weight.sparsity, weight.execution) == ((100, 16), 0.9, "dense")
    assert "looked up" in weight.reason
    assert inspect(tmp_path / "m.tflite").weights[0].sparsity == 0.9


@pytest.mark.tensorflow
def test_a_model_of_two_inputs_and_outputs(tmp_path):
    b, a = keras.Input((8,), name="b"), keras.Input((5,), name="a", dtype="int32")
    first = keras.layers.Dense(3)(b)
    second = keras.layers.Flatten()(keras.layers.Embedding(4, 2)(a))
    model = keras.Model([b, a], [second, first])
    assert export_litert(model, tmp_path / "m.tflite").difference < 1e-5


@pytest.mark.tensorflow
def test_integers_are_drawn_over_the_rows_of_their_table(tmp_path):
    """Of two rows that differ by little, a normalization makes the error of rounding large."""
    words = keras.Input((64,), dtype="int32", name="words")
    x = keras.layers.Embedding(257, 16, name="table")(words)
    x = keras.layers.LayerNormalization(axis=1, epsilon=1e-6)(x)
    x = keras.layers.GlobalMaxPooling1D()(keras.layers.Conv1D(32, 5, activation="gelu")(x))
    model = keras.Model(words, keras.layers.Dense(10, "softmax")(x))
    table = np.random.default_rng(0).normal(size=(257, 16)).astype("float32")
    table[1] = table[0] + 1e-4 * table[1]
    model.get_layer("table").set_weights([table])
    done = export_litert(model, tmp_path / "m.tflite")
    assert done.compared_on == "one random batch, 'words' of integers from 0 to 256"


def table_of(rows):
    return keras.layers.Embedding(rows, 4)


@pytest.mark.parametrize(
    ("build", "dtype", "limit"),
    [
        (lambda x: table_of(50)(keras.layers.Reshape((2, 4))(x)), "int32", 50),
        (lambda x: table_of(50)(x), "float32", 50),
        (lambda x: table_of(9)(x) + table_of(7)(x), "int32", 7),
        (lambda x: keras.Sequential([keras.Input((8,)), table_of(50)])(x), "int32", 50),
        (lambda x: keras.layers.CategoryEncoding(6, output_mode="multi_hot")(x), "int32", 6),
        (lambda x: keras.ops.one_hot(x, 5), "int32", 5),
        (lambda x: table_of(50)(keras.ops.cast(x, "int32")[:, :3]), "float32", 50),
        (lambda x: keras.layers.Dense(3)(x), "float32", None),
        (lambda x: keras.layers.Dense(3)(keras.ops.cast(x, "float32")), "int32", None),
    ],
    ids=range(9),
)
def test_the_rows_that_an_input_reaches(build, dtype, limit):
    x = keras.Input((8,), dtype=dtype)
    assert samples.index_limits(keras.Model(x, build(x)), 1) == [limit]


def test_bytes_are_drawn_over_their_range():
    x = keras.Input((4, 4, 3), dtype="uint8", name="image")
    model = keras.Model(x, keras.layers.Rescaling(1 / 255)(x))
    (drawn,), words = samples.random_batch(model, samples.signature_of(model, None))
    assert drawn.max() > 200
    assert words == "one random batch, 'image' of integers from 0 to 255"


@pytest.mark.tensorflow
@pytest.mark.parametrize("sizes", [(4, 4, 4), (10, 4, 3)])
def test_outputs_by_name_are_compared_by_name(tmp_path, sizes):
    x = keras.Input((8,))
    names = ("left2", "right1", "aux")
    heads = {name: keras.layers.Dense(size)(x) for name, size in zip(names, sizes, strict=True)}
    assert export_litert(keras.Model(x, heads), tmp_path / "m.tflite").difference < 1e-5


@pytest.mark.tensorflow
@pytest.mark.filterwarnings("ignore:When providing `inputs` as a dict")
@pytest.mark.parametrize("names", [("a", "b"), ("b", "a"), ("x", "y")])
@pytest.mark.parametrize("keys", ["ab", "ba"])
def test_inputs_are_given_as_the_model_takes_them(tmp_path, keys, names):
    inputs = {"a": keras.Input((8,), name=names[0]), "b": keras.Input((4,), name=names[1])}
    x = keras.layers.Concatenate()(
        [keras.layers.Dense(n)(inputs[k]) for k, n in (("a", 4), ("b", 6))]
    )
    model = keras.Model({key: inputs[key] for key in keys}, keras.layers.Dense(3)(x))
    assert export_litert(model, tmp_path / "m.tflite").difference < 1e-5


@pytest.mark.tensorflow
def test_more_than_ten_outputs_are_compared_in_their_order(tmp_path):
    x = keras.Input((8,))
    model = keras.Model(x, [keras.layers.Dense(2 + i // 6)(x) for i in range(12)])
    assert export_litert(model, tmp_path / "m.tflite").difference < 1e-5


def test_a_subclassed_model_needs_a_signature(tmp_path):
    class Twice(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = keras.layers.Dense(4)

        def call(self, x):
            return self.dense(self.dense(x))

    model = Twice()
    model(np.zeros((1, 4), "float32"))
    with pytest.raises(ValueError, match="`input_signature` is needed"):
        export_litert(model, tmp_path / "m.tflite")
    signature = [keras.InputSpec("float32", (1, 4))]
    if keras.backend.backend() == "tensorflow":
        export_litert(model, tmp_path / "m.tflite", input_signature=signature)
    else:
        with pytest.raises(RuntimeError, match="move them to a module"):
            export_litert(model, tmp_path / "m.tflite", input_signature=signature)


def test_lambdas_and_registered_functions_of_modules_are_converted(tmp_path, monkeypatch):
    (tmp_path / "functions_of_a_user.py").write_text(
        "import keras\n"
        "@keras.saving.register_keras_serializable('user')\n"
        "def double_tanh(x): return 2 * keras.ops.tanh(x)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    module = importlib.import_module("functions_of_a_user")
    layers = [
        keras.layers.Lambda(lambda x: 2 * x, output_shape=(8,)),
        keras.layers.Dense(4, module.double_tanh),
    ]
    model = keras.Sequential([keras.Input((8,)), *layers])
    assert export_litert(model, tmp_path / "m.tflite").difference < 1e-5


@pytest.mark.backend_free
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"path": "m.lite"}, "must end with '.tflite'"),
        ({"weights": "int4"}, "`weights` must be one of 'float32', 'float16', 'int8'"),
        ({"runtime": "onnx"}, "`runtime` must be one of"),
    ],
)
def test_wrong_arguments_say_what_is_right(tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message):
        export_litert(**{"model": model_with_zeros(), "path": "m.tflite", **arguments})
    assert list(tmp_path.iterdir()) == []


def test_a_dynamic_shape_is_refused(tmp_path):
    model = keras.Sequential([keras.Input((None, 8), name="words"), keras.layers.Dense(4)])
    with pytest.raises(ValueError, match=r"'words' has the shape \(None, None, 8\)"):
        export_litert(model, tmp_path / "m.tflite")


@pytest.mark.parametrize("count", [0, 1, 3])
def test_a_signature_has_every_input(tmp_path, count):
    inputs = [keras.Input((3,)), keras.Input((3,))]
    model = keras.Model(inputs, keras.layers.Dense(2)(keras.layers.Add()(inputs)))
    signature = [keras.InputSpec("float32", (1, 3))] * count
    with pytest.raises(ValueError, match=f"for each of the 2 inputs. Received: {count}"):
        export_litert(model, tmp_path / "m.tflite", input_signature=signature)


def test_samples_must_fit(tmp_path):
    with pytest.raises(ValueError, match=r"at least 1 of shape \(6, 6, 32\)"):
        export_litert(model_with_zeros(), tmp_path / "m.tflite", samples=np.zeros((2, 3)))
    with pytest.raises(ValueError, match=r"Received: shape \(\)\. The first axis"):
        export_litert(model_with_zeros(), tmp_path / "m.tflite", samples=np.zeros(()))
    grey = keras.Sequential([keras.Input((4, 4, 1)), keras.layers.Conv2D(2, 3)])
    with pytest.raises(ValueError, match=r"Add the last axis: x\[\.\.\., None\]"):
        export_litert(grey, tmp_path / "m.tflite", samples=np.zeros((8, 4, 4)))
    inputs = [keras.Input((3,)), keras.Input((3,))]
    model = keras.Model(inputs, keras.layers.Dense(2)(keras.layers.Add()(inputs)))
    with pytest.raises(ValueError, match=r"as many of each input. Received: \[4, 2\]"):
        export_litert(model, tmp_path / "m.tflite", samples=[np.ones((4, 3)), np.ones((2, 3))])


@pytest.mark.tensorflow
@pytest.mark.parametrize(
    "samples",
    [None, np.concatenate([np.zeros((1, 6, 6, 32)), np.ones((1, 6, 6, 32))])],
    ids=["random", "of the second sample alone"],
)
def test_a_mismatch_is_an_error_and_leaves_no_file(tmp_path, monkeypatch, samples):
    def damage(content, *_):
        for buffer in content.buffers:
            if buffer.data is not None and len(buffer.data) == 4 * 32 * 64:  # the convolution
                buffer.data = np.zeros_like(buffer.data)
        return []

    monkeypatch.setattr("keras_pruner.litert.export.store_sparse", damage)
    with pytest.raises(RuntimeError, match="are not those of the model"):
        export_litert(model_with_zeros(sparsity=0.5), tmp_path / "m.tflite", samples=samples)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.backend_free
def test_a_missing_extra_names_the_command(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "ai_edge_litert.schema_py_generated", None)
    flatbuffer.schema.cache_clear()
    with pytest.raises(ImportError, match=r'pip install "keras-pruner\[litert\]"'):
        flatbuffer.schema()


@pytest.mark.skipif(keras.backend.backend() == "tensorflow", reason="it builds no such model")
def test_names_of_layers_that_the_converter_does_not_take(tmp_path):
    named = keras.layers.Dense(2, name="層 1")
    model = keras.Sequential([keras.Input((4,), name="Eingang ü"), named])
    with pytest.raises(ValueError, match=r"only ASCII letters.* Received: 層 1. Build"):
        export_litert(model, tmp_path / "model.tflite", progress=False)
