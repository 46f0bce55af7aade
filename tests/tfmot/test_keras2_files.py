"""Files of Keras 2 and of TFMOT 0.8.1, written by tests/tfmot/golden/make.py, become Keras 3."""

import json
import zipfile
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest
from models import sparsity

import keras_pruner.tfmot as tfmot
from keras_pruner.model_file import FileError
from keras_pruner.tfmot.keras2_files import load_model

FOLDER = Path(__file__).parent / "golden"
PLAIN = [
    f"{name}.{end}" for name in ("within", "images", "dot", "mixed") for end in ("h5", "keras")
]
FILES = sorted(p.name for p in FOLDER.glob("*_*.*") if p.suffix in (".h5", ".keras"))
pytestmark = [
    pytest.mark.one_backend,
    pytest.mark.filterwarnings("ignore:Do not pass an `input_shape`"),
]


@pytest.mark.parametrize("name", FILES)
def test_predictions_and_zeros_are_those_of_tfmot(name):
    model = load_model(FOLDER / name)
    with np.load(FOLDER / f"{name.partition('_')[0]}.npz") as told:
        predictions = keras.ops.convert_to_numpy(model(told["x"]))
        np.testing.assert_allclose(predictions, told["predictions"], atol=2e-6)
    wrapped = sparsity([v for v in model.variables if v.name == "kernel"])
    stripped = load_model(FOLDER / f"{name.partition('_')[0]}_stripped.h5")
    for mine, its in zip(model.get_weights(), stripped.get_weights(), strict=True):
        np.testing.assert_array_equal(mine, its)
    assert 0 < wrapped < 0.71
    assert not any("prune_low_magnitude" in layer.name for layer in model.layers)


@pytest.mark.parametrize("name", PLAIN)
def test_predictions_of_plain_models_are_those_of_keras_2(name, tmp_path):
    model = load_model(FOLDER / name)
    model.save(tmp_path / "model.keras")
    with np.load(FOLDER / f"{name.partition('.')[0]}.npz") as told:
        for mine in (model, keras.saving.load_model(tmp_path / "model.keras")):
            predictions = keras.ops.convert_to_numpy(mine(told["x"], training=False))
            np.testing.assert_allclose(predictions, told["predictions"], rtol=2e-6, atol=2e-6)


def test_the_model_can_be_pruned_further_and_saved(tmp_path):
    model = load_model(FOLDER / "cnn_wrapped.h5")
    S = tfmot.sparsity.keras
    S.prune_low_magnitude(model, pruning_schedule=S.ConstantSparsity(0.8, 1, frequency=1))
    model.compile("adam", "sparse_categorical_crossentropy")
    x = np.zeros((8, 8, 8, 3), np.float32)
    model.fit(x, np.zeros(8, int), verbose=0, callbacks=[S.UpdatePruningStep()])
    assert sparsity([model.get_layer("stem").kernel]) > 0.79
    S.strip_pruning(model).save(tmp_path / "model.keras")
    assert keras.saving.load_model(tmp_path / "model.keras").count_params() == model.count_params()


def test_masks_count_where_tfmot_left_weights_dense(tmp_path):
    """A file saved in the middle of an epoch holds weights that its masks have not touched."""
    copy = tmp_path / "dense.h5"
    copy.write_bytes((FOLDER / "cnn_wrapped.h5").read_bytes())
    with h5py.File(copy, "r+") as file:
        kernel = file["model_weights/prune_low_magnitude_stem/stem/kernel:0"]
        kernel[...] = kernel[...] + (kernel[...] == 0)
    zeros = [sparsity([load_model(p).get_layer("stem").kernel])
             for p in (copy, FOLDER / "cnn_wrapped.h5")]  # fmt: skip
    assert zeros[0] == zeros[1] > 0.69


def test_plain_keras_says_how_to_read_a_wrapped_file():
    with (
        tfmot.sparsity.keras.prune_scope(),
        pytest.raises((ValueError, TypeError), match=r"keras_pruner\.tfmot\.load_model"),
    ):
        keras.saving.load_model(FOLDER / "cnn_wrapped.h5", compile=False)


def rewritten(folder, change, name="text_wrapped.keras"):
    """A `.keras` file with another configuration."""
    path = folder / "changed.keras"
    with zipfile.ZipFile(FOLDER / name) as old, zipfile.ZipFile(path, "w") as new:
        config = json.loads(old.read("config.json"))
        change(config)
        new.writestr("config.json", json.dumps(config))
        for name in ("metadata.json", "model.weights.h5"):
            new.writestr(name, old.read(name))
    return path


def last(config):
    return config["config"]["layers"][-1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: last(c)["config"]["layer"].update(class_name="Lambda"), "holds Python code"),
        (lambda c: last(c)["config"]["layer"].update(class_name="TFOpLambda"),
         "its TFOpLambda layer 'dense.*' holds a TensorFlow operation.* Replace it by a layer"),
        (lambda c: last(c)["config"]["layer"].update(class_name="Mine"), "needs the class Mine"),
        (lambda c: last(c)["config"]["layer"]["config"].update(
            kernel_initializer={"module": "os", "class_name": "system", "config": {}}),
         "needs os.system"),
        (lambda c: last(c)["config"]["layer"]["config"].update(units=4), "where the layer needs"),
        (lambda c: c.update(class_name="Robot"), "needs the class Robot"),
        (lambda c: c.pop("config"), "may be damaged"),
        (lambda c: last(c)["config"]["layer"]["config"].update(shape=3),
         r"cannot be expressed in Keras 3: TypeError: Unrecognized .*'shape': 3"),
    ],
    ids=["lambda", "operation", "unknown class", "module", "shapes", "no model", "no config",
         "argument"],
)  # fmt: skip
def test_a_bad_configuration_is_refused(change, message, tmp_path):
    with pytest.raises(FileError, match=message):
        load_model(rewritten(tmp_path, change))


def test_inputs_and_outputs_by_name_keep_their_names(tmp_path):
    """Keras 2 writes {"found": ["attention", 0, 0]} for what it writes as a list without names."""

    def name_ends(config):
        for key, name in (("input_layers", "input_1"), ("output_layers", "found")):
            config["config"][key] = {name: config["config"][key][0]}

    model = load_model(rewritten(tmp_path, name_ends, "dot.keras"))
    with np.load(FOLDER / "dot.npz") as told:
        found = model({"input_1": told["x"]})
        assert set(found) == {"found"}
        predictions = keras.ops.convert_to_numpy(found["found"])
        np.testing.assert_allclose(predictions, told["predictions"], rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("spelling", ["double", "mine>double"])
def test_functions_of_the_caller_are_found_by_name(spelling, tmp_path):
    def double(x):
        return 2 * x

    path = rewritten(tmp_path, lambda c: last(c)["config"]["layer"]["config"].update(
        activation=spelling, name="double"))  # fmt: skip
    assert load_model(path, {"double": double}).get_layer("double").activation is double


def test_frozen_layers_stay_frozen(tmp_path):
    path = rewritten(tmp_path, lambda c: last(c)["config"]["layer"]["config"].update(
        trainable=False))  # fmt: skip
    assert not load_model(path).layers[-1].trainable


@pytest.mark.backend_free
def test_bad_files_are_refused(tmp_path):
    with pytest.raises(FileError, match="does not exist"):
        load_model(tmp_path / "none.h5")
    with pytest.raises(FileError, match=r"SavedModel.*`model\.save\('model\.h5'\)"):
        load_model(tmp_path)
    bad = tmp_path / "bad.h5"
    bad.write_bytes(b"no model")
    with pytest.raises(FileError, match="is not a model file"):
        load_model(bad)
    content = (FOLDER / "cnn_wrapped.h5").read_bytes()
    bad.write_bytes(content[: len(content) // 3])
    with pytest.raises(FileError, match="damaged"):
        load_model(bad)
    with h5py.File(bad, "w") as file:
        file["weights"] = np.zeros(3)
    with pytest.raises(FileError, match="holds weights, but no model"):
        load_model(bad)


def test_links_to_other_files_are_not_followed(tmp_path):
    copy = tmp_path / "linked.h5"
    copy.write_bytes((FOLDER / "cnn_stripped.h5").read_bytes())
    with h5py.File(copy, "r+") as file:
        del file["model_weights/stem"]
        link = h5py.ExternalLink(str(FOLDER / "cnn_stripped.h5"), "model_weights/stem")
        file["model_weights/stem"] = link
    with pytest.raises(FileError, match="not a group of this file"):
        load_model(copy)
