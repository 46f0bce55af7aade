"""`kp.callbacks.PruningSummaries` writes what TensorBoard reads."""

import builtins
import importlib.util
import json
import os
import subprocess
import sys

import event_files
import keras
import numpy as np
import pytest
from models import mlp, sparsity

import keras_pruner as kp

READ = """
import json, sys
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
reader = EventAccumulator(sys.argv[1])
reader.Reload()
tags = reader.Tags()["scalars"]
print(json.dumps({tag: [(e.step, e.value) for e in reader.Scalars(tag)] for tag in tags}))
"""


def half():
    return kp.GradualPruning(
        kp.ConstantSparsity(0.5, begin_step=1, end_step=1), allocation="uniform"
    )


def test_sparsity_and_metrics_are_logged_by_step_and_by_epoch(data, tmp_path):
    model = mlp()
    summaries = kp.callbacks.PruningSummaries(tmp_path, update_freq=3)
    history = model.fit(
        *data, 8, epochs=2, verbose=0, callbacks=[half(), summaries], validation_data=data
    ).history
    seen = {run: event_files.read(tmp_path / run) for run in ("metrics", "train", "validation")}
    kernels = ["hidden/kernel", "head/kernel"]
    assert sorted(seen["metrics"]) == sorted(
        f"{kernel}/{figure}" for kernel in kernels for figure in ("sparsity", "threshold")
    )
    steps = [step for step, _ in seen["metrics"]["head/kernel/threshold"]]
    assert steps == [
        0,
        3,
        6,
        8,
        9,
        12,
        15,
        16,
    ]
    assert seen["metrics"]["hidden/kernel/sparsity"][-1][1] == 0.5
    for run, name in (("train", "loss"), ("validation", "val_loss")):
        logged = [number for _, number in seen[run]["epoch_loss"]]
        np.testing.assert_allclose(logged, history[name], rtol=1e-6)


@pytest.mark.slow
def test_a_real_tensorboard_reads_the_same(data, tmp_path):
    """In this environment, or in that of TENSORBOARD_PYTHON."""
    here = sys.executable if importlib.util.find_spec("tensorboard") else None
    python = os.environ.get("TENSORBOARD_PYTHON", here)
    if python is None:
        pytest.skip("no TensorBoard here, and TENSORBOARD_PYTHON names no environment with one")
    mlp().fit(*data, verbose=0, callbacks=[half(), kp.callbacks.PruningSummaries(tmp_path)])
    for run in ("metrics", "train"):
        command = [python, "-c", READ, str(tmp_path / run)]
        scalars = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
        found = {tag: [tuple(pair) for pair in pairs] for tag, pairs in scalars.items()}
        assert found == event_files.read(tmp_path / run)


def test_a_metric_of_many_numbers_has_a_curve_for_each(tmp_path):
    summaries = kp.callbacks.PruningSummaries(tmp_path)
    summaries.set_model(mlp())
    summaries.on_epoch_end(0, {"f1": np.array([0.25, 0.5])})
    summaries.on_train_end()
    seen = event_files.read(tmp_path / "train")
    assert seen == {"epoch_f1_0": [(0, 0.25)], "epoch_f1_1": [(0, 0.5)]}


OFF = [
    {"profile_batch": 0},
    {"histogram_freq": 0, "write_graph": False, "write_images": False},
    {"write_steps_per_second": False, "embeddings_freq": 0, "embeddings_metadata": None},
]


@pytest.mark.parametrize("options", OFF, ids=str)
def test_options_of_tensorboard_that_are_off_need_no_tensorflow(options, data, tmp_path):
    model = mlp()
    summaries = kp.callbacks.PruningSummaries(tmp_path, **options)
    assert not isinstance(summaries._tensorboard, keras.callbacks.TensorBoard)
    model.fit(*data, verbose=0, callbacks=[half(), summaries])
    assert "epoch_loss" in event_files.read(tmp_path / "train")


def test_options_of_tensorboard_that_are_on_are_handed_to_it(data, tmp_path):
    if keras.backend.backend() != "tensorflow":
        pytest.skip("these need TensorFlow")
    model = mlp()
    summaries = kp.callbacks.PruningSummaries(
        tmp_path, histogram_freq=1, write_graph=False, profile_batch=0
    )
    model.fit(*data, verbose=0, callbacks=[half(), summaries], validation_data=data)
    written = b"".join(path.read_bytes() for path in (tmp_path / "train").iterdir())
    assert b"kernel/histogram" in written
    assert b"epoch_loss" in written
    assert "hidden/kernel/sparsity" in event_files.read(tmp_path / "metrics")
    assert sparsity([model.layers[0].kernel]) == 0.5


@pytest.mark.backend_free
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"log_dir": ""}, "non-empty string"),
        ({"log_dir": "logs", "update_freq": "steps"}, "`update_freq` must be"),
        ({"log_dir": "logs", "update_freq": 0}, "`update_freq` must be"),
        ({"log_dir": "logs", "histogram": 1}, r"does not have the options \['histogram'\]"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        kp.callbacks.PruningSummaries(**arguments)


@pytest.mark.backend_free
@pytest.mark.parametrize(
    ("missing", "options"), [("tensorboardX", {}), ("tensorflow", {"histogram_freq": 1})]
)
def test_a_missing_extra_is_named_with_its_command(missing, options, monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == missing]:
        monkeypatch.delitem(sys.modules, name)
    found = builtins.__import__

    def without(name, *rest):
        if name.partition(".")[0] == missing:
            raise ModuleNotFoundError(f"No module named {name!r}")
        return found(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    monkeypatch.setattr(importlib, "import_module", without)
    extra = {"tensorboardX": "tensorboard"}.get(missing, missing)
    with pytest.raises(ImportError, match=rf'pip install "keras-pruner\[{extra}\]"'):
        kp.callbacks.PruningSummaries("logs", **options)
