"""`keras-pruner advise`, `export`, `inspect` of LiteRT files and the page of `compare`."""

import json

import keras
import numpy as np
import pytest
from test_commands import fails, misused, succeeds

import keras_pruner as kp
from keras_pruner import model_file
from keras_pruner.cli import commands

pytestmark = pytest.mark.one_backend


@pytest.fixture
def saved(tmp_path):
    """A model of large Dense layers with 90 % of its blocks zero, in a file."""
    layers = [keras.layers.Dense(64, "relu", name="one"), keras.layers.Dense(8, name="two")]
    model = keras.Sequential([keras.Input((64,)), *layers])
    kp.prune(model, 0.9, pattern=kp.Block((4, 1)))
    path = tmp_path / "pruned.keras"
    model.save(path)
    return path


def test_advise_prints_what_the_function_says(capsys, saved):
    model = keras.saving.load_model(saved)
    arguments = ["--sparsity", "0.95", "--batch-size", "2"]
    data = json.loads(succeeds(capsys, "advise", saved, *arguments, "--json"))
    assert data == json.loads(json.dumps(kp.advise(model, sparsity=0.95, batch_size=2).as_dict()))
    assert data["layers"][0]["pattern"] == repr(kp.Block((4, 1)))
    text = succeeds(capsys, "advise", saved, "--runtime", "litert-wasm", "--unstructured")
    assert "litert-wasm at sparsity 0.8" in text
    assert "unpacks zeros" in succeeds(capsys, "advise", saved, "--runtime", "openvino")
    assert "invalid choice" in misused(capsys, "advise", saved, "--runtime", "tpu")
    assert "0.8 for 80% zeros" in misused(capsys, "advise", saved, "--sparsity", "80")


def test_speedups_are_measured_once_and_then_read(capsys, saved, tmp_path, monkeypatch):
    points = [kp.litert.cost_model.Point(form, 1e6, 1, 0.0, 1.0) for form in ("block 1x4", "csr")]
    measured = kp.litert.SpeedupTable("litert-x86", "by hand", tuple(points))
    calls = []
    monkeypatch.setattr(commands, "measure_speedups", lambda: calls.append(1) or measured)
    path = tmp_path / "speedups.json"
    for _ in range(2):
        data = json.loads(succeeds(capsys, "advise", saved, "--speedups", path, "--json"))
        assert data == json.loads(json.dumps(kp.advise(model_file.load(saved), measured).as_dict()))
    assert calls == [1]
    command = ["advise", saved, "--speedups", path, "--runtime", "litert-x86"]
    assert "not allowed with" in misused(capsys, *command)
    path.write_text("[1]")
    assert "holds no table of speed-ups" in fails(capsys, "advise", saved, "--speedups", path)
    assert "make the directory" in fails(
        capsys, "advise", saved, "--speedups", tmp_path / "no" / "g"
    )
    assert "--speedups is for .tflite files" in fails(
        capsys, "export", saved, tmp_path / "s.keras", "--speedups", path
    )


@pytest.mark.parametrize(
    ("name", "arguments"),
    [("small.keras", []), ("half.keras", ["--weights", "float16"]), ("w.safetensors", [])],
)
def test_export_stores_by_the_ending(capsys, saved, tmp_path, name, arguments):
    out = tmp_path / name
    data = json.loads(succeeds(capsys, "export", saved, out, *arguments, "--json"))
    assert (data["path"], data["size"]) == (str(out), out.stat().st_size)
    assert len(data.get("rounded", [])) == (2 if name == "half.keras" else 0)
    model = keras.saving.load_model(saved)
    if out.suffix == ".safetensors":
        other = keras.saving.load_model(saved)
        other.set_weights([np.ones(w.shape) for w in other.weights])
        kp.storage.load_sparse(other, out)
    else:
        other = keras.saving.load_model(out)
    assert kp.summarize(other).weights == kp.summarize(model).weights


@pytest.mark.tensorflow
def test_export_and_inspect_litert(capsys, saved, tmp_path):
    pytest.importorskip("ai_edge_litert", reason='needs pip install "keras-pruner[litert]"')
    pytest.importorskip("tensorflow", reason='needs pip install "keras-pruner[tensorflow]"')
    out = tmp_path / "out.tflite"
    data = json.loads(succeeds(capsys, "export", saved, out, "--json"))
    assert data["size"] == out.stat().st_size
    assert data["difference"] < 1e-5
    found = json.loads(succeeds(capsys, "inspect", out, "--json"))
    assert found["sparsity"] == pytest.approx(0.9, abs=0.01)
    assert not found["xnnpack"]["eligible"]
    assert "XNNPACK" in succeeds(capsys, "inspect", out)
    text = succeeds(capsys, "export", saved, out, "--weights", "int8", "--force")
    assert "int8" in text
    command = ["export", saved, out, "--input-shape", "2", "64", "--force"]
    assert "out.tflite" in succeeds(capsys, *command)


def test_export_rewrites_a_cnn_when_asked(capsys, tmp_path):
    image = keras.Input((8, 8, 1))
    x = keras.layers.Conv2D(4, 3, strides=2, padding="same")(image)
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(4, 1)(x))
    keras.Model(image, keras.layers.Dense(2)(x)).save(tmp_path / "cnn.keras")
    command = ["export", tmp_path / "cnn.keras", tmp_path / "out.keras", "--prepare-for-xnnpack"]
    data = json.loads(succeeds(capsys, *command, "--json"))
    assert any("reversed" in change for change in data["changes"])
    assert data["obstacles"] == []
    assert len(keras.saving.load_model(tmp_path / "out.keras").layers) > 5


def test_bad_exports_are_refused_before_anything_is_loaded(capsys, saved, tmp_path):
    out = tmp_path / "out.tflite"
    nothing = tmp_path / "nothing.keras"
    assert "must end in .tflite" in fails(capsys, "export", nothing, tmp_path / "out.lite")
    assert "not for .keras files" in fails(
        capsys, "export", nothing, tmp_path / "out.keras", "--weights", "int8"
    )
    assert "--runtime is for .tflite files" in fails(
        capsys, "export", nothing, tmp_path / "o.safetensors", "--runtime", "litert-x86"
    )
    out.write_text("mine")
    assert "exists already. Pass --force" in fails(capsys, "export", nothing, out)
    assert out.read_text() == "mine"
    assert "does not exist" in fails(capsys, "export", nothing, out, "--force")
    assert "The directory of the file must exist" in fails(
        capsys, "export", saved, tmp_path / "no" / "out.keras"
    )
    inputs = [keras.Input((3,)), keras.Input((2,))]
    two = keras.Model(inputs, keras.layers.Dense(2)(keras.layers.Concatenate()(inputs)))
    two.save(tmp_path / "two.keras")
    command = ["export", tmp_path / "two.keras", tmp_path / "two.tflite", "--input-shape", "1"]
    assert "models of one input" in fails(capsys, *command)
    assert not list(tmp_path.glob(".keras-pruner*"))


def test_what_is_no_tflite_file_is_refused(capsys, saved, tmp_path):
    pytest.importorskip("ai_edge_litert", reason='needs pip install "keras-pruner[litert]"')
    saved.rename(tmp_path / "model.tflite")
    assert "no .tflite file" in fails(capsys, "inspect", tmp_path / "model.tflite")
    assert "No such file" in fails(capsys, "inspect", tmp_path / "nothing.tflite")


def test_compare_writes_a_page(capsys, saved, tmp_path):
    page = tmp_path / "report.html"
    text = succeeds(capsys, "compare", saved, saved, "--html", page)
    assert f"The same as a page: {page}" in text
    assert "layer by layer" in page.read_text()
    command = ["compare", saved, saved, "--html", page]
    assert "exists already. Pass --force" in fails(capsys, *command)
    succeeds(capsys, *command, "--force")


def test_a_page_in_no_directory_is_refused_before_anything_is_measured(capsys, tmp_path):
    page = tmp_path / "nowhere" / "report.html"
    said = fails(capsys, "compare", tmp_path / "a.keras", tmp_path / "b.keras", "--html", page)
    assert "nowhere does not exist: make the directory first" in said


def test_a_failing_conversion_is_shown_whole(capsys, saved, tmp_path, monkeypatch):
    def fail(*_):
        raise RuntimeError("The conversion failed.\nThe converter said: so and so")

    monkeypatch.setattr("keras_pruner.cli.commands.export_litert", lambda *_, **__: fail())
    assert commands.main(["export", str(saved), str(tmp_path / "out.tflite")]) == 1
    assert "converter said: so and so" in capsys.readouterr().err


@pytest.fixture
def ranges(tmp_path):
    """Typical inputs in a file, as integer files need them."""
    path = tmp_path / "samples.npz"
    np.savez(path, x=np.random.default_rng(0).normal(size=(64, 64)).astype("float32"))
    return path


@pytest.mark.tensorflow
@pytest.mark.parametrize("target", ["tflm", "ethos-u55-128", "litert-x86", "wasm"])
def test_export_writes_the_file_of_a_target(capsys, saved, ranges, tmp_path, target):
    for package in ("ai_edge_litert", "tensorflow", "tflite_micro", "ethosu"):
        pytest.importorskip(package)
    path = tmp_path / "out.tflite"
    inputs = ["--calibration", ranges]
    data = json.loads(
        succeeds(capsys, "export", saved, path, "--target", target, *inputs, "--json")
    )
    assert path.stat().st_size > 0
    size = {"tflm": "flash", "ethos-u55-128": "compiled"}.get(target, "size")
    found = data[size]["size"] if size == "compiled" else data[size]
    assert found == path.stat().st_size


def test_samples_choose_the_rounding_of_a_keras_file(capsys, saved, ranges, tmp_path):
    command = ["export", saved, tmp_path / "out.keras", "--weights", "float8"]
    data = json.loads(succeeds(capsys, *command, "--calibration", ranges, "--json"))
    assert 0 < data["difference"] < 0.2
    data = json.loads(succeeds(capsys, *command, "--force", "--json"))
    assert data["difference"] is None
    epochs = ["--distillation-epochs", "2"]
    assert "with --calibration" in fails(capsys, *command, "--force", *epochs)
    trained = [*command, "--force", *epochs, "--calibration", ranges, "--json"]
    assert json.loads(succeeds(capsys, *trained))["distillation"]["epochs"] == 2


@pytest.mark.tensorflow
def test_find_sparsity_for_flash(capsys, saved, ranges):
    pytest.importorskip("ai_edge_litert")
    command = ["find-sparsity", saved, "--calibration", ranges, "--tolerance", "0.3"]
    data = json.loads(
        succeeds(capsys, *command, "--flash", "1000000", "--target", "litert-x86", "--json")
    )
    assert data["sparsity"] == 0
    assert data["target"] == "litert-x86"
    # On a busy machine the steps stand before the error.
    assert commands.main([*map(str, command), "--flash", "300", "--target", "litert-x86"]) == 1
    *_, said = capsys.readouterr().err.splitlines()
    assert said.startswith("keras-pruner: The file for litert-x86 does not fit at any sparsity")


def test_find_sparsity_within_a_drop(capsys, saved, ranges):
    command = ["find-sparsity", saved, "--calibration", ranges, "--tolerance", "0.4"]
    data = json.loads(succeeds(capsys, *command, "--max-drop", "0.3", "--json"))
    assert 0 <= data["sparsity"] < 1
    assert data["max_drop"] == 0.3
    assert "--target needs --flash" in misused(capsys, *command, "--target", "tflm")
    assert "--ram needs --flash" in misused(capsys, *command, "--ram", "64000")
    assert "give --calibration" in misused(capsys, "find-sparsity", saved)


def test_a_target_decides_types_and_asks_for_samples(capsys, saved, tmp_path):
    command = ["export", saved, tmp_path / "out.tflite"]
    assert "needs --calibration" in fails(capsys, *command, "--target", "tflm")
    said = fails(capsys, *command, "--target", "wasm", "--weights", "int8")
    assert "Leave out --weights and --input-shape" in said
    assert "give --target" in fails(capsys, *command, "--calibration", "samples.npz")
    npu = [*command, "--target", "ethos-u55-128", "--ram", "64000"]
    assert "--ram is for --target tflm" in fails(capsys, *npu)
    keras_file = ["export", saved, tmp_path / "out.keras", "--target", "wasm"]
    assert "--target is for .tflite files" in fails(capsys, *keras_file)
