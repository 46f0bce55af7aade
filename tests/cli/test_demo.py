import json

import keras
import numpy as np
import pytest

import keras_pruner as kp
from keras_pruner.cli import commands, demo

pytestmark = pytest.mark.one_backend


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    return demo.run(tmp_path_factory.mktemp("demo"), sparsity=0.75, epochs=1, samples=256)


def test_the_demo_prunes_saves_and_reports(result):
    dense, pruned = result.comparison.dense, result.comparison.pruned
    assert result.comparison.same_architecture
    assert pruned.report.prunable.sparsity == pytest.approx(0.75, abs=1e-4)
    assert dense.report.prunable.zeros < 10
    assert abs(pruned.sizes["plain .keras"] - dense.sizes["plain .keras"]) < 10  # their names
    assert pruned.sizes["save_compressed"] < 0.5 * dense.sizes["save_compressed"]
    assert 0 < pruned.scores["accuracy"] < 1
    assert len(result.history["test accuracy"]) == len(result.history["sparsity"]) == 2
    page = result.report.read_text()
    assert page.count("<svg") == 2  # sparsity and accuracy
    assert "layer by layer" in page
    assert "save_compressed" in page
    assert "Page with plots" in str(result)
    assert "Page with plots" not in page
    loaded = keras.saving.load_model(result.folder / "pruned.keras")
    assert kp.summarize(loaded) == pruned.report


def test_the_demo_shrinks_the_dense_model_too(result):
    before, after = result.shrunk.macs
    assert after <= 0.5 * before
    assert f"{before:,} multiplications became {after:,}" in str(result)
    small = keras.saving.load_model(result.folder / "shrunk.keras")
    assert kp.channels.macs(small) == after


def test_the_files_of_the_demo_can_be_compared_as_it_says(result, capsys):
    command = str(result).rpartition("keras-pruner ")[2].split()
    assert command[0] == "compare"
    assert commands.main([*command, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["pruned"]["scores"] == pytest.approx(result.comparison.pruned.scores)


def test_the_command_passes_its_arguments_on_and_prints_the_table(result, monkeypatch, capsys):
    given = {}
    monkeypatch.setattr(demo, "run", lambda output, **kw: given.update(kw, output=output) or result)
    arguments = ["--epochs", "1", "--samples", "256", "--sparsity", "0.75", "--seed", "3"]
    assert commands.main(["demo", "-o", "out", *arguments]) == 0
    assert given == {"output": "out", "epochs": 1, "samples": 256, "sparsity": 0.75, "seed": 3}
    printed = capsys.readouterr().out
    for layer in ("conv_1", "conv_2", "hidden", "digit"):
        assert printed.count(f"{layer}/kernel") == 1
    assert commands.main(["demo", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(result.as_dict()))


@pytest.mark.backend_free
def test_the_digits_are_split_into_training_and_test():
    x, y, x_test, y_test = demo.digits()
    assert (x.shape, x_test.shape) == ((8000, 28, 28, 1), (2000, 28, 28, 1))
    assert (x.dtype, float(x.min()), float(x.max())) == (np.float32, 0.0, 1.0)
    assert set(y) == set(y_test) == set(range(10))
