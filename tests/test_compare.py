import json
import re

import keras
import numpy as np
import pytest

import keras_pruner as kp
from keras_pruner import model_file
from keras_pruner.compare import stored_sizes
from keras_pruner.litert.latency import Latency, Timing
from keras_pruner.validation import one_line


def network(sparsity=0.0, name="net", seed=0):
    layers = [keras.layers.Dense(64, "relu", name="wide"), keras.layers.Dense(3, name="head")]
    model = keras.Sequential([keras.Input((32,)), *layers], name=name)
    rng = np.random.default_rng(seed)
    for layer in layers:
        kernel = rng.normal(size=layer.kernel.shape).astype("float32")
        kernel[rng.random(kernel.shape) < sparsity] = 0
        layer.kernel.assign(kernel)
    return model


@pytest.mark.parametrize("sparsity", [0.5, 0.9])
def test_every_form_is_above_the_entropy_of_the_zeros_and_the_mantissas(sparsity):
    model = network(sparsity)
    sizes = stored_sizes(model)
    assert list(sizes) == [
        "plain .keras", "save_compressed", "save_compressed, float16", "save_compressed, float8",
        "save_compressed, shared", "save_sparse",
    ]  # fmt: skip
    # The mask of the kernels at its entropy, and 23 of the 32 bits of each other weight.
    kernels = np.concatenate([np.ravel(layer.get_weights()[0]) for layer in model.layers])
    p = np.mean(kernels == 0)
    bits = -(p * np.log2(p) + (1 - p) * np.log2(1 - p)) + (1 - p) * 23
    least = kernels.size * bits / 8
    dense = 4 * model.count_params()
    assert sizes["plain .keras"] >= dense
    assert least < sizes["save_sparse"] < dense
    assert least < sizes["save_compressed"] < sizes["plain .keras"]


def test_weights_too_large_for_float16_have_no_such_size():
    model = network()
    model.layers[0].kernel.assign(np.full((32, 64), 1e5))
    assert "save_compressed, float16" not in stored_sizes(model)


class Unserializable(keras.Model):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def call(self, x):
        return self.inner(x)


def test_a_model_without_a_config_has_the_other_sizes():
    model = Unserializable(keras.layers.Dense(3))
    model(np.ones((1, 4), "float32"))
    assert list(stored_sizes(model)) == ["save_sparse"]


def test_zeros_bytes_and_scores_of_both(data, tmp_path):
    x, y = data
    dense = keras.Sequential([keras.Input((8,)), keras.layers.Dense(16), keras.layers.Dense(3)])
    dense.compile("sgd", loss=keras.losses.SparseCategoricalCrossentropy(True), metrics=["acc"])
    pruned = keras.Sequential.from_config(dense.get_config())
    pruned.set_weights(dense.get_weights())
    kp.prune(pruned, 0.75)
    found = kp.compare(dense, pruned, data=(x, y), names=("before", "after"))
    assert found.same_architecture
    assert not pruned.compiled
    pruned.compile(loss=keras.losses.SparseCategoricalCrossentropy(True), metrics=["acc"])
    for model, side in ((dense, found.dense), (pruned, found.pruned)):
        expected = model.evaluate(x, y, verbose=0, return_dict=True)
        assert side.scores == pytest.approx(expected, rel=1e-5)
    assert found.pruned.report == kp.summarize(pruned)
    assert found.pruned.sizes["save_compressed"] < found.dense.sizes["save_compressed"]
    for side in (found.dense, found.pruned):
        assert set(side.file_scores) == set(side.sizes)
        assert side.file_scores["plain .keras"] == side.scores
        changes = [
            abs(side.file_scores[f"save_compressed, {form}"]["loss"] - side.scores["loss"])
            for form in ("float16", "float8")
        ]
        assert changes[0] < changes[1] < 0.1
    files = found.tables()[1]
    assert list(files.columns)[-2:] == [">plain dense / pruned", ">acc, pruned"]
    assert len(files.rows) == len(found.dense.sizes)
    text = str(found)
    ratio = found.dense.sizes["plain .keras"] / found.pruned.sizes["save_compressed"]
    assert text.startswith(f"after against before: {ratio:.1f}x smaller file, acc")
    assert re.search(r"loss +\d\.\d{4} +\d\.\d{4}", text)
    assert re.search(r"dense\w*/kernel +128 +0\.0000 +0\.\d{4}", text)
    dumped = json.loads(json.dumps(found.as_dict()))
    assert dumped["pruned"]["report"]["weights"][0]["zeros"] == found.pruned.report.weights[0].zeros


def test_files_are_compared_like_models(tmp_path):
    paths = [tmp_path / "dense.keras", tmp_path / "pruned.keras"]
    models = [network(), network(0.8)]
    for model, path in zip(models, paths, strict=True):
        model.save(path)
    of_files, of_models = kp.compare(*paths), kp.compare(*models)
    for one, other in ((of_files.dense, of_models.dense), (of_files.pruned, of_models.pruned)):
        assert (one.report, one.layers) == (other.report, other.layers)
    assert [of_files.dense.name, of_models.dense.name] == [paths[0].name, "dense"]


def test_a_file_that_runs_code_says_how_to_load_it_in_python(tmp_path):
    path = tmp_path / "lambda.keras"
    layers = [keras.layers.Lambda(lambda x: x * 2), keras.layers.Dense(4)]
    keras.Sequential([keras.Input((8,)), *layers]).save(path)
    with pytest.raises(model_file.FileError, match=r"in Python, load it .*safe_mode=False"):
        kp.compare(path, path)


def test_models_of_other_architectures_are_matched_by_name():
    other = keras.Sequential([keras.Input((32,)), keras.layers.Dense(3, name="else")])
    found = kp.compare(network(), other)
    assert "do not have the same architecture" in str(found)
    rows = found.tables()[-1].rows
    assert [row[0] for row in rows] == ["wide/kernel", "head/kernel", "else/kernel"]
    assert [row[2] for row in rows] == ["0.0000", "0.0000", "-"]


def test_the_page_stands_alone_and_has_a_plot_for_everything_measured():
    found = kp.compare(network(name="<b>"), network(0.8))
    timing = Timing(1, 2.0, 1.0, 2.0, (1.9, 2.1), 0.0)
    found = kp.reports.Comparison(found.dense, found.pruned, Latency("native", 1, (timing,)))
    history = {"sparsity": [0.0, 0.8], "val_accuracy": [0.9, 0.8]}
    text = found.to_html(history=history)
    assert text.count("<svg") == 2  # accuracy over the sparsity; the mask
    for title in ("While training", "Size of the files", "The largest kernel", "Next"):
        assert f"<h2>{title}</h2>" in text
    for word in ("kilobytes", "milliseconds", "smaller file", "head/<wbr>kernel", "2.00x"):
        assert word in text
    assert "<b>" not in text
    assert not re.search(r"""(src|href)\s*=\s*["'](?!#)|@import|url\((?!#)|<script""", text)


def test_what_fit_returned_is_plotted_without_empty_curves():
    found = kp.compare(network(), network(0.8))
    history = keras.callbacks.History()
    history.history = {"sparsity": [0.0, 0.8], "val_accuracy": []}
    for page in (found, found.pruned.report):
        assert page.to_html(history=history) == page.to_html(history={"sparsity": [0.0, 0.8]})
        assert "While training" in page.to_html(history=history)
        assert "While training" not in page.to_html(history={"val_accuracy": []})


def test_litert_files_are_converted_and_timed_when_asked():
    pytest.importorskip("ai_edge_litert", reason='needs pip install "keras-pruner[litert]"')
    pytest.importorskip("tensorflow", reason='needs pip install "keras-pruner[tensorflow]"')
    if keras.backend.backend() != "tensorflow":
        pytest.skip("six conversions, each in a process of its own")
    dense = network()
    dense.compile(loss="mse", metrics=["mae"])
    x = np.random.default_rng(0).normal(size=(50, 32)).astype("float32")
    data = (x, dense.predict(x, verbose=0))
    found = kp.compare(dense, network(0.8), litert=True, latency=True, data=data)
    forms = {"export_litert", "export_litert, int8", "export_litert, int8, deflated"}
    assert forms <= set(found.pruned.sizes)
    exact, whole, small = (
        found.pruned.file_scores[form]["mae"]
        for form in ("save_compressed", "export_litert", "export_litert, int8")
    )
    assert whole == pytest.approx(exact, rel=1e-3)
    assert small == pytest.approx(exact, rel=0.1)
    assert found.latency.runtime == "native"
    assert "LiteRT, native, milliseconds (batch 1)" in str(found)


def test_wrong_arguments_say_what_is_right():
    with pytest.raises(
        ValueError, match=r"neither model is compiled.*model\.compile\(loss=\.\.\.,"
    ):
        kp.compare(network(), network(), data=(np.ones((2, 32)), np.ones(2)))
    with pytest.raises(ValueError, match="must be a Keras model"):
        kp.compare(network(), 3)
    x = np.ones((64, 32))
    for data in (x, (x,), (x, x, x), {"x": x}, keras.ops.ones((64, 32))):
        with pytest.raises(ValueError, match=r"`data` must be a pair .* Pass data=\(x, y\)"):
            kp.compare(network(), network(), data=data)
    with pytest.raises(ValueError, match=r"`names` must be two.*Received: names=\['a'\]"):
        kp.compare(network(), network(), names=["a"])


def compiled(model, **arguments):
    model.compile("sgd", **arguments)
    return model


def test_data_that_can_be_read_only_once_is_refused(data):
    with pytest.raises(ValueError, match=r"can be read only once.*Pass arrays"):
        kp.compare(network(), network(), data=(batch for batch in [data]))


@pytest.mark.parametrize("pruned_is_compiled", [True, False])
def test_a_metric_of_many_numbers_is_taken_apart(pruned_is_compiled):
    arguments = {"loss": "mse", "metrics": [keras.metrics.F1Score()]}
    dense, pruned = compiled(network(), **arguments), network()
    if pruned_is_compiled:
        compiled(pruned, loss="mse", metrics=[keras.metrics.F1Score()])
    x, y = np.ones((6, 32), "float32"), np.eye(3, dtype="float32")[np.arange(6) % 3]
    found = kp.compare(dense, pruned, data=(x, y))
    assert set(found.pruned.scores) == {"loss", "f1_score[0]", "f1_score[1]", "f1_score[2]"}
    assert found.dense.scores == pytest.approx(found.pruned.scores)
    assert "f1_score[2]" in str(found)


@pytest.mark.skipif(keras.backend.backend() == "jax", reason="which does not look at labels")
@pytest.mark.parametrize("pruned_is_compiled", [True, False])
def test_labels_that_the_loss_does_not_know_are_an_error_of_the_data(pruned_is_compiled):
    dense, pruned = compiled(network(), loss="sparse_categorical_crossentropy"), network()
    if pruned_is_compiled:
        compiled(pruned, loss="sparse_categorical_crossentropy")
    with pytest.raises(ValueError, match=r"cannot be measured on `data`.*Keras said: .*7"):
        kp.compare(dense, pruned, data=(np.ones((6, 32)), np.full(6, 7)))


def test_scores_that_only_one_has_are_shown_beside_a_dash():
    def classifier():
        model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1, "sigmoid")])
        return compiled(model, loss="binary_crossentropy", metrics=[keras.metrics.AUC()])

    # Keras calls the second one auc_1.
    found = kp.compare(classifier(), classifier(), data=(np.ones((4, 4)), np.ones(4)))
    (dense,), (pruned,) = (set(side.scores) - {"loss"} for side in (found.dense, found.pruned))
    rows = {name: (before, after) for name, before, after, _ in found.tables()[0].rows}
    assert rows[dense] == (f"{found.dense.scores[dense]:.4f}", "-")
    assert rows[pruned] == ("-", f"{found.pruned.scores[pruned]:.4f}")
    assert "-" not in rows["loss"]


def test_what_keras_said_is_one_line():
    error = ValueError('It failed:\n\n  File "a.py", line 1\n\nat a label of 7.' + "x" * 999)
    assert one_line(error).startswith("It failed: at a label of 7.xxx")
    assert len(one_line(error)) == 500


def test_no_samples_are_refused():
    model = compiled(network(), loss="mse")
    with pytest.raises(ValueError, match="`data` holds no samples"):
        kp.compare(model, model, data=(np.ones((0, 32)), np.ones((0, 3))))


@pytest.mark.filterwarnings("ignore:Layer .* does not have a `quantize` method")
def test_quantized_weights_are_said_not_to_be_counted():
    pruned = network(0.5)
    pruned.quantize("int8")
    found = kp.compare(network(), pruned)
    shares = next(row for row in found.tables()[0].rows if row[0] == "sparsity, prunable weights")
    assert shares[1:3] == ("0.0000", "-")
    assert "have 2,240 and 0 prunable weights" in str(found)
    assert "kp.quantization.zero_masks(model)" in str(found)
    assert "kp.quantization.zero_masks" not in str(kp.compare(network(), network(0.5)))


def two_heads(names=("a", "b")):
    x = keras.Input((8,))
    outputs = [
        keras.layers.Dense(size, kernel_initializer="ones", name=name)(x)
        for size, name in zip((1, 3), names, strict=True)
    ]
    return keras.Model(x, outputs)


def unregistered(y, predicted):
    return keras.ops.mean(keras.ops.abs(y - predicted), axis=-1)


JUDGES = {
    "of functions": {"loss": [unregistered, "mse"], "metrics": [[unregistered], ["mae"]]},
    "by name": {"loss": {"a": "mse", "b": "mae"}, "metrics": {"a": "mae", "b": ["mse"]},
                "loss_weights": {"a": 1.0, "b": 0.5}},
    "in lists": {"loss": ["mse", "mae"], "metrics": [["mae"], [keras.metrics.MeanSquaredError()]]},
}  # fmt: skip


@pytest.mark.parametrize("names", [("a", "b"), ("a_1", "b_1")])
@pytest.mark.parametrize("judge", JUDGES)
def test_a_model_that_is_not_compiled_is_judged_as_the_other(judge, names):
    dense, pruned = compiled(two_heads(), **JUDGES[judge]), two_heads(names)
    x, y = np.ones((4, 8), "float32"), [np.ones((4, 1)), np.zeros((4, 3))]
    found = kp.compare(dense, pruned, data=(x, y))
    scores = [found.dense.scores, found.pruned.scores]
    assert scores[1] == pytest.approx(scores[0])
    assert len(scores[0]) >= 3
    assert not pruned.compiled


def test_a_judge_that_does_not_fit_is_an_error():
    dense = compiled(two_heads(), loss=["mse", "mae"])
    x, y = np.ones((4, 8), "float32"), [np.ones((4, 1)), np.zeros((4, 3))]
    single = keras.Sequential([keras.Input((8,)), keras.layers.Dense(1)])
    with pytest.raises(
        ValueError, match=r"is not compiled, and the loss and metrics .*Compile both"
    ):
        kp.compare(dense, single, data=(x, y))


def test_weights_with_fewer_channels_are_listed():
    layers = [keras.layers.Dense(8, name="hidden"), keras.layers.Dense(2, name="head")]
    model = keras.Sequential([keras.Input((4,)), *layers])
    kernel, bias = layers[1].get_weights()
    kernel[::2] = 0
    layers[1].set_weights([kernel, bias])
    found = kp.compare(model, kp.shrink(model).model, progress=False)
    text = str(found)
    assert "Channels were removed: 2 weights have a smaller shape" in text
    assert "Quantized" not in text
    assert [side.macs for side in (found.dense, found.pruned)] == [48, 24]
    assert "multiply-accumulates" in text
    assert ("2.00x", "fewer multiplications", "48 dense, 24 pruned") in found.figures()
    other_way = kp.compare(kp.shrink(model).model, model, progress=False)
    assert "fewer multiplications" not in str(other_way.figures())
    assert [side.name for side in (found.dense, found.pruned)] == ["dense", "pruned"]
    assert "4 x 8" in text
    assert "4 x 4" in text
