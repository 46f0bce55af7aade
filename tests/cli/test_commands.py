import io
import json
import os
import subprocess
import sys

import keras
import numpy as np
import pytest

import keras_pruner as kp
import keras_pruner_cli
from keras_pruner import model_file
from keras_pruner.cli import commands
from keras_pruner.criteria import magnitude, wanda

pytestmark = pytest.mark.one_backend


@pytest.fixture
def dense(tmp_path):
    """A compiled model that has been trained for a step, in a file."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [keras.Input((8,)), keras.layers.Dense(16, name="one"), keras.layers.Dense(4, name="two")]
    )
    model.compile("adam", loss="mse", metrics=["mae"])
    model.fit(np.ones((4, 8)), np.ones((4, 4)), verbose=0)
    path = tmp_path / "dense.keras"
    model.save(path)
    return path


def fails(capsys, *arguments):
    """Run a command that must fail with one line, which is returned."""
    assert commands.main([str(argument) for argument in arguments]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("keras-pruner: ")
    assert printed.err.count("\n") == 1
    return printed.err


def succeeds(capsys, *arguments):
    assert commands.main([str(argument) for argument in arguments]) == 0
    return capsys.readouterr().out


def misused(capsys, *arguments):
    """Run a command whose arguments are wrong; what it says, in one line, is returned."""
    with pytest.raises(SystemExit) as exit_:
        commands.main([str(argument) for argument in arguments])
    assert exit_.value.code == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert said.endswith("--help`.\n")
    return said


def test_inspect_counts(capsys, dense):
    data = json.loads(succeeds(capsys, "inspect", dense, "--json"))
    assert [row["path"] for row in data["weights"]] == [
        "one/kernel",
        "one/bias",
        "two/kernel",
        "two/bias",
    ]
    assert data["all"]["size"] == 8 * 16 + 16 + 16 * 4 + 4
    assert "one/kernel" in succeeds(capsys, "inspect", dense)


def test_prune_writes_what_the_function_makes(capsys, dense, tmp_path):
    out = tmp_path / "out.keras"
    said = succeeds(capsys, "prune", dense, "--sparsity", "0.75", "-o", out)
    assert "without optimizer and loss" in said
    model = keras.saving.load_model(dense, compile=False)
    kp.prune(model, 0.75)
    report = kp.summarize(model)
    loaded = keras.saving.load_model(out)
    assert kp.summarize(loaded) == report
    assert report.prunable.zeros == 144
    for mine, theirs in zip(model.get_weights(), loaded.get_weights(), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["dense.keras", "out.keras"]


PATTERNS = [
    (["--nm", "2:4"], kp.NM(2, 4), None),
    (["--block", "4", "1", "--sparsity", "0.5"], kp.Block((4, 1)), 0.5),
    (["--channel", "outputs", "--sparsity", "0.5"], kp.Channel(-1), 0.5),
    (["--channel", "inputs", "--sparsity", "0.5"], kp.Channel(-2), 0.5),
]


@pytest.mark.parametrize(("arguments", "pattern", "sparsity"), PATTERNS)
def test_patterns_have_an_option_each(capsys, dense, tmp_path, arguments, pattern, sparsity):
    out = tmp_path / "out.keras"
    succeeds(capsys, "prune", dense, *arguments, "-o", out)
    model = keras.saving.load_model(dense)
    kp.prune(model, sparsity, pattern=pattern)
    written = keras.saving.load_model(out).get_weights()
    np.testing.assert_array_equal(written[0], model.get_weights()[0])


def test_filters_leave_and_allocation(capsys, dense, tmp_path):
    def sparsities(*arguments):
        command = ["prune", dense, "--sparsity", "0.5", "-o", tmp_path / "out.keras", "--force"]
        data = json.loads(succeeds(capsys, *command, "--json", *arguments))
        kernels = {row["path"]: row["sparsity"] for row in data["weights"] if row["prunable"]}
        return kernels, {skip["path"]: skip["reason"] for skip in data["prune"]["skipped"]}

    assert sparsities("--allocation", "uniform")[0] == {"one/kernel": 0.5, "two/kernel": 0.5}
    kernels, skipped = sparsities("--filters", "two")
    assert kernels == {"one/kernel": 0.0, "two/kernel": 0.5}
    assert "filters" in skipped["one/kernel"]
    kernels, skipped = sparsities("--leave", "two")
    assert kernels == {"one/kernel": 0.5, "two/kernel": 0.0}
    assert skipped["two/kernel"] == "left alone by an override"


@pytest.fixture
def samples(tmp_path):
    x = np.random.default_rng(0).normal(size=(64, 8)).astype("float32")
    np.savez(tmp_path / "samples.npz", x=x, y=np.zeros(64))
    return tmp_path / "samples.npz"


@pytest.mark.parametrize("criterion", [None, "magnitude", "wanda"])
def test_prune_with_samples_refits(capsys, dense, samples, tmp_path, criterion):
    out = tmp_path / "out.keras"
    options = ["--sparsity", "0.5", "--calibration", samples]
    options += ["--criterion", criterion] if criterion else []
    said = succeeds(capsys, "prune", dense, *options, "-o", out)
    assert "relative error of the outputs on held-out samples" in said
    model = keras.saving.load_model(dense, compile=False)
    given = {"magnitude": magnitude, "wanda": wanda}.get(criterion, criterion)
    kp.prune(model, 0.5, calibration=np.load(samples)["x"], criterion=given)
    written = keras.saving.load_model(out).get_weights()
    for mine, theirs in zip(model.get_weights(), written, strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-6)


def test_prune_with_samples_says_what_it_tried(capsys, dense, samples, tmp_path):
    options = ["--sparsity", "0.5", "--calibration", samples, "--allocation", "auto", "--json"]
    data = json.loads(succeeds(capsys, "prune", dense, *options, "-o", tmp_path / "out.keras"))
    assert len(data["prune"]["candidates"]) == 3
    assert [w["path"] for w in data["prune"]["weights"]] == ["one/kernel", "two/kernel"]
    assert data["prune"]["weights"][0]["before"] > 0


def test_prune_with_samples_distils(capsys, dense, samples, tmp_path):
    options = ["--sparsity", "0.5", "--calibration", samples, "--samples", "48"]
    options += ["--distillation-epochs", "20"]
    said = succeeds(capsys, "prune", dense, *options, "-o", tmp_path / "out.keras")
    assert "20 epochs of distillation" in said


def test_what_needs_samples_says_so(capsys, dense, tmp_path):
    command = ["prune", dense, "--sparsity", "0.5", "-o", tmp_path / "out.keras"]
    said = misused(capsys, *command, "--allocation", "auto")
    assert "--allocation auto needs --calibration SAMPLES.npz" in said
    for option in ("--distillation-epochs", "--samples"):
        said = misused(capsys, *command, option, "32")
        assert f"{option} needs --calibration SAMPLES.npz" in said
    said = misused(capsys, *command, "--criterion", "wanda")
    assert "--criterion wanda needs --calibration SAMPLES.npz" in said


@pytest.mark.parametrize("damage", ["missing", "text", "empty", "npy", "cut", "garbled"])
def test_samples_that_cannot_be_read(capsys, dense, samples, tmp_path, damage):
    content = samples.read_bytes()
    if damage == "npy":
        samples = tmp_path / "samples.npy"
        np.save(samples, np.ones((64, 8)))
    elif damage == "missing":
        samples.unlink()
    else:
        half = len(content) // 2
        made = {"text": b"x", "empty": b"", "cut": content[:half]}
        samples.write_bytes(made.get(damage, content[:half] + b"?" * 9 + content[half + 9 :]))
    said = "does not exist" if damage == "missing" else "is not an .npz file"
    for command in (["sensitivity", dense, "--calibration"], ["compare", dense, dense, "--data"]):
        assert f"{samples} {said}" in fails(capsys, *command, samples)


def test_samples_that_cannot_be_used(capsys, dense, tmp_path):
    command = ["sensitivity", dense, "--calibration", tmp_path / "samples.npz"]
    np.savez(tmp_path / "samples.npz", a=np.ones(3), b=np.ones(3))
    assert "must hold an array x, the inputs of the model. It holds: ['a', 'b']" in fails(
        capsys, *command
    )
    np.savez(tmp_path / "samples.npz", np.ones((64, 8)))
    assert "samples that are all the same" in fails(capsys, *command)


def test_samples_of_several_inputs_are_named_as_they_are(capsys, tmp_path):
    inputs = [keras.Input((3,), name="one"), keras.Input((4,), name="two")]
    outputs = keras.layers.Dense(5)(keras.layers.Concatenate()(inputs))
    keras.Model(inputs, outputs).save(tmp_path / "model.keras")
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "s.npz", two=rng.random((32, 4)), one=rng.random((32, 3)))
    command = ["sensitivity", tmp_path / "model.keras", "--calibration"]
    assert "most sensitive first" in succeeds(capsys, *command, tmp_path / "s.npz")
    np.savez(tmp_path / "s.npz", one=rng.random((32, 3)))
    assert "must hold arrays named ['one', 'two']" in fails(capsys, *command, tmp_path / "s.npz")


def test_sensitivity(capsys, dense, samples):
    options = ["--calibration", samples, "--sparsities", "0.3", "0.6", "--json"]
    data = json.loads(succeeds(capsys, "sensitivity", dense, *options))
    assert data["sparsities"] == [0.3, 0.6]
    assert sorted(data["drops"]) == ["one/kernel", "two/kernel"]
    data = json.loads(succeeds(capsys, "sensitivity", dense, *options, "--filters", "two"))
    assert sorted(data["drops"]) == ["two/kernel"]


@pytest.mark.parametrize(
    ("error", "said"),
    [(ValueError("Called.\n\nNo 7."), "Called. No 7."), (ValueError(), "ValueError")],
)
def test_an_error_is_said_to_its_end_in_one_line(capsys, dense, monkeypatch, error, said):
    def load(*_, **__):
        raise error

    monkeypatch.setattr(model_file, "load", load)
    assert fails(capsys, "inspect", dense) == f"keras-pruner: {said}\n"


def test_compare_shows_cost_and_gain(capsys, dense, tmp_path):
    out, samples = tmp_path / "out.keras", tmp_path / "samples.npz"
    succeeds(capsys, "prune", dense, "--sparsity", "0.75", "-o", out)
    np.savez(samples, x=np.ones((6, 8)), y=np.ones((6, 4)))
    data = json.loads(succeeds(capsys, "compare", dense, out, "--data", samples, "--json"))
    assert data["same_architecture"] is True
    assert data["dense"]["report"]["prunable"]["zeros"] == 0
    assert data["pruned"]["report"]["prunable"]["sparsity"] == 0.75
    sizes = data["pruned"]["sizes"]
    assert sizes["save_compressed"] < sizes["plain .keras"] < out.stat().st_size * 1.05
    assert data["latency"] is None
    assert set(data["dense"]["scores"]) == set(data["pruned"]["scores"]) == {"loss", "mae"}
    assert data["dense"]["scores"] != data["pruned"]["scores"]
    text = succeeds(capsys, "compare", dense, out)
    assert "one/kernel" in text
    assert "save_compressed" in text


def test_compare_says_that_models_differ(capsys, dense, tmp_path):
    other = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4, name="else")])
    other.save(tmp_path / "other.keras")
    text = succeeds(capsys, "compare", dense, tmp_path / "other.keras")
    assert "not have the same architecture" in text
    assert "else/kernel" in text


def test_compare_needs_something_to_measure(capsys, dense, tmp_path):
    model = keras.saving.load_model(dense, compile=False)
    model.save(tmp_path / "bare.keras")
    samples = tmp_path / "samples.npz"
    bare = tmp_path / "bare.keras"
    np.savez(samples, x=np.ones((6, 8)), y=np.ones((6, 4)))
    assert "neither model is compiled" in fails(capsys, "compare", bare, bare, "--data", samples)
    np.savez(samples, inputs=np.ones((6, 8)))
    assert "must hold the arrays x and y" in fails(
        capsys, "compare", dense, bare, "--data", samples
    )


def test_a_missing_file(capsys, tmp_path):
    assert "does not exist" in fails(capsys, "inspect", tmp_path / "no.keras")
    assert "is a directory" in fails(capsys, "inspect", tmp_path)


@pytest.mark.parametrize("size", [0, 100, 2000])
def test_a_damaged_file(capsys, dense, size):
    dense.write_bytes(dense.read_bytes()[:size])
    assert "damaged" in fails(capsys, "inspect", dense)


def test_a_damaged_file_that_still_is_an_archive(capsys, dense):
    content = bytearray(dense.read_bytes())
    middle = content.index(b"\x89HDF")
    content[middle : middle + 2000] = bytes(2000)
    dense.write_bytes(content)
    assert "damaged" in fails(capsys, "inspect", dense)


def test_a_file_that_would_run_code_needs_trust(capsys, tmp_path):
    path = tmp_path / "lambda.keras"
    layers = [keras.layers.Lambda(lambda x: x * 2), keras.layers.Dense(4)]
    keras.Sequential([keras.Input((8,)), *layers]).save(path)
    assert "pass --trust" in fails(capsys, "inspect", path)
    assert "dense" in succeeds(capsys, "inspect", path, "--trust")


def test_a_class_that_is_not_here(capsys, tmp_path):
    class Mine(keras.layers.Dense):
        pass

    path = tmp_path / "custom.keras"
    keras.Sequential([keras.Input((8,)), Mine(4)]).save(path)
    assert "needs the class 'Mine', which is not registered" in fails(capsys, "inspect", path)


def test_an_existing_output_is_kept_unless_forced(capsys, dense, tmp_path):
    out = tmp_path / "out.keras"
    out.write_text("mine")
    command = ["prune", dense, "--sparsity", "0.5", "-o", out]
    assert "exists already. Pass --force" in fails(capsys, *command)
    assert out.read_text() == "mine"
    succeeds(capsys, *command, "--force")
    assert keras.saving.load_model(out)


def test_a_failed_save_leaves_what_was_there(dense, tmp_path, monkeypatch):
    out = tmp_path / "out.keras"
    out.write_text("mine")
    model = keras.saving.load_model(dense)

    def save(path):
        path.write_text("half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(model, "save", save)
    with pytest.raises(model_file.FileError, match="No space left"):
        model_file.save(model, out, overwrite=True)
    assert out.read_text() == "mine"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["dense.keras", "out.keras"]


def test_an_output_that_cannot_be(capsys, dense, tmp_path):
    command = ["prune", dense, "--sparsity", "0.5", "-o"]
    assert "must end with '.keras'" in fails(capsys, *command, tmp_path / "out.h5")
    assert "Make the directory" in fails(capsys, *command, tmp_path / "no" / "out.keras")


def test_bad_requests_change_nothing(capsys, dense, tmp_path):
    out = tmp_path / "out.keras"
    command = ["prune", dense, "-o", out]
    assert "matches no layer" in fails(
        capsys, *command, "--sparsity", "0.5", "--filters", "nothing"
    )
    assert not out.exists()


def test_wrong_usage_exits_with_2(capsys, dense):
    for sparsity in ("80", "-1", "1", "nan", "half"):
        said = misused(capsys, "prune", dense, f"--sparsity={sparsity}", "-o", "out.keras")
        assert f"0.8 for 80% zeros. Received '{sparsity}'" in said
    for nm in ("24", "4:2", "4:4", "0:4", "a:b", "2:4:8", ":"):
        said = misused(capsys, "prune", dense, "--nm", nm, "-o", "out.keras")
        assert f"0 < N < M, like 2:4: N weights stay of every M. Received '{nm}'" in said
    for option in ("--filters", "--leave"):
        said = misused(capsys, "prune", dense, "-o", "out.keras", option, "(")
        assert f"argument {option}: '(' is not a regular expression: missing )" in said
    assert "not allowed with" in misused(
        capsys, "prune", dense, "--nm", "2:4", "--block", "4", "1", "-o", "out.keras"
    )
    assert "at least 1" in misused(capsys, "demo", "--epochs", "0")
    assert "give --sparsity" in misused(capsys, "prune", dense, "-o", "out.keras")
    assert "`--sparsity` has nothing to decide. Received: --sparsity=0.8. Leave it out" in misused(
        capsys, "prune", dense, "--nm", "2:4", "--sparsity", "0.8", "-o", "out.keras"
    )
    assert "arguments are required: command" in misused(capsys)


@pytest.mark.parametrize("command", commands.COMMANDS)
def test_help_has_examples_and_a_word_on_every_option(capsys, command):
    with pytest.raises(SystemExit) as exit_:
        commands.main([command, "--help"])
    assert exit_.value.code == 0
    help = capsys.readouterr().out
    assert f"examples:\n  keras-pruner {command}" in help
    assert "default: None" not in help


@pytest.mark.parametrize(
    "example", [line for command in commands.COMMANDS.values() for line in command.examples]
)
def test_the_examples_of_the_help_can_be_parsed(example):
    assert commands._parser().parse_args(example.split()).run


def test_leave_names_the_weights_that_there_are(capsys, dense, tmp_path):
    command = ["prune", dense, "--sparsity", "0.5", "-o", tmp_path / "out.keras", "--leave"]
    said = fails(capsys, *command, "one", "nope")
    assert "--leave nope matches no weight. The weights are: one/kernel, one/bias, two/ke" in said
    succeeds(capsys, *command, "one/kernel", "one", "bias")  # that they overlap is no matter


def test_errors_name_options_and_not_arguments_of_python(capsys, dense, samples, tmp_path):
    command = ["prune", dense, "--sparsity", "0.5", "-o", tmp_path / "out.keras"]
    assert "`filters`" not in fails(capsys, *command, "--filters", "nothing")
    said = fails(capsys, *command, "--calibration", samples, "--samples", "1")
    assert "--samples must be" in said


def test_inspect_looks_for_n_of_m(capsys, dense, tmp_path):
    out = tmp_path / "out.keras"
    succeeds(capsys, "prune", dense, "--nm", "2:4", "-o", out)
    assert "yes" in succeeds(capsys, "inspect", out, "--nm", "2:4")
    found = json.loads(succeeds(capsys, "inspect", out, "--nm", "2:4", "--json"))
    assert found["weights"] == {"one/kernel": True, "two/kernel": True}
    assert commands.main(["inspect", str(out), "--nm", "1:4"]) == 1
    printed = capsys.readouterr()
    assert printed.out.count("no") >= 2
    assert "at most 1 non-zero weights in every 4; these have more: one/kernel" in printed.err
    keras.Sequential([keras.Input((4,)), keras.layers.BatchNormalization()]).save(out)
    assert commands.main(["inspect", str(out), "--nm", "2:4"]) == 1
    assert "has no prunable kernel" in capsys.readouterr().err


@pytest.mark.backend_free
def test_a_closed_pipe_ends_quietly(monkeypatch, capsys, dense, tmp_path):
    def closed(*_):
        raise BrokenPipeError

    monkeypatch.setattr(commands, "_show", closed)
    with (tmp_path / "pipe").open("w") as pipe:
        monkeypatch.setattr(commands.sys, "stdout", pipe)
        assert commands.main(["inspect", str(dense)]) == 0
    assert capsys.readouterr().err == ""


# ------------------------------------------------------- which backend the script runs on


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """A machine on which only the backends given are installed, and nothing is configured."""

    def install(*names):
        monkeypatch.setattr(keras_pruner_cli, "_is_installed", names.__contains__)
        monkeypatch.setenv("KERAS_HOME", str(tmp_path))
        monkeypatch.setenv("KERAS_BACKEND", "")

    return install


@pytest.mark.backend_free
def test_the_default_backend_is_left_alone_where_it_is_installed(machine):
    machine("tensorflow", "torch")
    assert keras_pruner_cli.choose_backend() == ""
    assert os.environ["KERAS_BACKEND"] == ""


@pytest.mark.backend_free
def test_an_installed_backend_is_chosen_and_said(machine):
    machine("torch", "jax")
    said = keras_pruner_cli.choose_backend()
    assert said == "running on jax, because tensorflow is not installed"
    assert os.environ["KERAS_BACKEND"] == "jax"


@pytest.mark.backend_free
def test_the_configuration_of_keras_counts(machine, tmp_path):
    machine("torch", "jax")
    (tmp_path / "keras.json").write_text('{"backend": "torch"}')
    assert keras_pruner_cli.choose_backend() == ""
    (tmp_path / "keras.json").write_text("damaged")
    assert "running on jax" in keras_pruner_cli.choose_backend()


@pytest.mark.backend_free
def test_a_backend_that_is_asked_for_must_be_there(machine, monkeypatch):
    machine("jax")
    monkeypatch.setenv("KERAS_BACKEND", "torch")
    with pytest.raises(ImportError, match=r"KERAS_BACKEND=torch, which is not .* Installed: jax"):
        keras_pruner_cli.choose_backend()


@pytest.mark.backend_free
def test_without_any_backend_it_says_what_to_install(machine):
    machine()
    with pytest.raises(ImportError, match=r'pip install "keras-pruner\[jax\]"'):
        keras_pruner_cli.choose_backend()


def run(*arguments, **environment):
    command = [sys.executable, "-m", "keras_pruner_cli", *map(str, arguments)]
    environment = {**os.environ, **environment}
    return subprocess.run(command, capture_output=True, env=environment, check=True).stdout


def test_the_script_runs_in_a_process_of_its_own(dense):
    assert json.loads(run("inspect", dense, "--json"))["all"]["size"] == 212


def test_names_that_the_stream_cannot_encode_are_escaped(tmp_path):
    path = tmp_path / "modèle-模型.keras"
    keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, name="層")]).save(path)
    printed = run("inspect", path, PYTHONIOENCODING="cp1252")
    assert b"\\u5c64/kernel" in printed


def test_files_whose_names_the_stream_cannot_encode_are_written_and_named(
    dense, tmp_path, monkeypatch
):
    written = io.BytesIO()
    stream = io.TextIOWrapper(written, "cp1252")
    monkeypatch.setattr(sys, "stdout", stream)
    pruned, small = tmp_path / "模.keras", tmp_path / "型.safetensors"
    for command in (
        ["prune", dense, "--sparsity", "0.5", "-o", pruned],
        ["export", dense, small],
        ["compare", dense, pruned],
    ):
        assert commands.main([str(part) for part in command]) == 0
    stream.flush()
    assert rb"\u6a21.keras" in written.getvalue()
    assert rb"\u578b.safetensors" in written.getvalue()
    assert small.exists()
