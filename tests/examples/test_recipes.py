"""What the recipes in examples/ share: stored lines, resuming, statistics, tables, budgets."""

import dataclasses
import json
import os
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.one_backend

EXAMPLES = Path(__file__).parents[2] / "examples"
sys.path[:0] = [str(EXAMPLES), str(EXAMPLES / "recipes")]
from lib import datasets, recipe, results, spoken_words, stored_runs, tfmot_side

backend_free = pytest.mark.backend_free


def line(seed, score, method="ours", target="0.8", size=100, **more):
    budget = {"dense_epochs": 1, "pruning_epochs": 1}
    found = {
        "recipe": "a model",
        "seed": seed,
        "method": method,
        "budget": budget,
        "measure": "accuracy",
        "published": None,
        "published dense": None,
        "score": score,
        "zeros": 0.8,
        "bytes": size,
        "bytes, plain": 2 * size,
        "seconds": 1.0,
        "backend": "jax",
    }
    if not method.startswith("dense"):
        found |= {"target": target, "allocation": "lamp", "start": "gradual"}
    return found | more


def lines_of(seeds, pruned):
    """Dense 0.8, 0.9 when trained longer; pruned as said."""
    return [
        each
        for seed in range(seeds)
        for each in (
            line(seed, 0.8, "dense", size=1000),
            line(seed, 0.9, "dense, longer", size=1000),
            line(seed, pruned[seed]),
        )
    ]


# ---------------------------------------------------------------- statistics


@backend_free
def test_the_interval_is_students():
    # mean 3, deviation sqrt(2.5), t(0.975, 4) = 2.776: half = 2.776 sqrt(2.5 / 5) = 1.963
    interval = stored_runs.Interval([1.0, 2.0, 3.0, 4.0, 5.0])
    assert interval.mean == 3.0
    assert interval.low == pytest.approx(3 - 1.963, abs=1e-3)
    assert interval.high == pytest.approx(3 + 1.963, abs=1e-3)


@backend_free
def test_one_value_has_no_interval():
    assert str(stored_runs.Interval([2.0])) == "2.00"
    assert np.isnan(stored_runs.Interval([2.0]).half)
    with pytest.raises(ValueError, match="must not be empty"):
        stored_runs.Interval([])


@backend_free
def test_retained_is_of_the_better_dense_network():
    (found,) = stored_runs.summaries(lines_of(2, [0.45, 0.9]))
    assert found.retained.values == pytest.approx([50.0, 100.0])
    assert found.lost().values == pytest.approx([45.0, 0.0])
    assert found.ratio() == 10.0


@backend_free
def test_nothing_is_retained_of_nothing():
    lines = [line(0, 0.0, "dense"), line(0, 0.0, "dense, longer"), line(0, 0.1)]
    (found,) = stored_runs.summaries(lines)
    assert np.isnan(found.retained.mean)


@backend_free
def test_a_time_that_nobody_knows_does_not_count():
    lines = lines_of(2, [0.45, 0.9])
    (found,) = stored_runs.summaries([*lines[:-1], lines[-1] | {"seconds": None}])
    assert found.mean("seconds") == 1.0
    (found,) = stored_runs.summaries([each | {"seconds": None} for each in lines])
    assert np.isnan(found.mean("seconds"))


@backend_free
def test_seeds_without_both_dense_lines_do_not_count():
    lines = [each for each in lines_of(2, [0.45, 0.9]) if each["method"] != "dense" or each["seed"]]
    (found,) = stored_runs.summaries(lines)
    assert [each["seed"] for each in found.lines] == [1]


@backend_free
def test_differences_are_paired_by_seed():
    lines = lines_of(3, [0.7, 0.6, 0.5])
    lines += [line(seed, score, "tfmot") for seed, score in ((2, 0.4), (0, 0.5))]
    ours, theirs = stored_runs.summaries(lines)
    assert stored_runs.difference(ours, theirs).values == pytest.approx([20.0, 10.0])
    (other,) = stored_runs.summaries(lines_of(1, [0.5]))
    assert stored_runs.difference(other, dataclasses.replace(theirs, lines=[])) is None


@backend_free
def test_other_settings_and_budgets_are_other_rows():
    lines = lines_of(1, [0.5])
    lines.append(line(0, 0.6, start="at once"))
    lines.append(line(0, 0.7, budget={"dense_epochs": 9, "pruning_epochs": 9}))  # no dense lines
    assert [each.label for each in stored_runs.summaries(lines)] == [
        "ours, lamp, gradual",
        "ours, lamp, at once",
    ]


# ---------------------------------------------------------------- storing


@backend_free
def test_lines_are_appended_whole(tmp_path):
    path = tmp_path / "deep" / "runs.jsonl"
    assert stored_runs.read(path) == []
    stored_runs.append(path, {"seed": 0})
    stored_runs.append(path, {"seed": 1})
    assert [each["seed"] for each in stored_runs.read(path)] == [0, 1]


@backend_free
def test_what_is_made_is_kept(tmp_path):
    made = []

    def make():
        made.append(1)
        return {"x": np.arange(3)}

    for _ in range(2):
        found = datasets.cached(tmp_path / "a" / "x.npz", make)
    assert made == [1]
    assert found["x"].tolist() == [0, 1, 2]


# ---------------------------------------------------------------- budgets and options


@backend_free
def test_every_row_once_in_an_epoch_and_the_same_again():
    budget = recipe.Budget(2, 1, batch=4)
    order = recipe.order(7, 10, budget, 2)
    assert order.shape == (4, 4)
    assert all(len(set(epoch.ravel())) == 8 for epoch in np.split(order, 2))
    assert np.array_equal(order, recipe.order(7, 10, budget, 2))
    assert not np.array_equal(order, recipe.order(8, 10, budget, 2))


@backend_free
def test_rows_of_several_inputs_are_taken_together():
    train = recipe.Arrays((np.arange(4), 10 * np.arange(4)), np.arange(4) % 2)
    (one, two), y = train.take(np.array([3, 1]))
    assert len(train) == 4
    assert (one.tolist(), two.tolist(), y.tolist()) == ([3, 1], [30, 10], [1, 1])


@backend_free
def test_two_of_four_has_its_own_sparsity():
    options = recipe.parser("").parse_args(
        ["--sparsity", "0.5", "0.9", "--pattern", "unstructured", "2:4"]
    )
    assert [target.name for target in recipe.targets(options)] == ["0.5", "0.9", "2:4"]


@backend_free
def test_tfmot_needs_its_python(monkeypatch):
    monkeypatch.delenv("TFMOT_PYTHON", raising=False)
    options = recipe.parser("").parse_args(["--methods", "tfmot"])
    options.tfmot_python = None
    with pytest.raises(SystemExit, match="--tfmot-python"):
        recipe.check(options)


@backend_free
@pytest.mark.parametrize("steps", [1, 7, 100, 186, 234, 1000, 12345])
def test_tfmots_last_update_is_on_its_beat_and_leaves_steps_to_recover(steps):
    def decay(initial, final, begin, end, frequency):
        return types.SimpleNamespace(final=final, begin=begin, end=end, frequency=frequency)

    api = types.SimpleNamespace(PolynomialDecay=decay)
    found = tfmot_side.schedule(recipe.Target(0.9), steps, api)
    assert found.final == 0.9
    assert (found.end - found.begin) % found.frequency == 0
    assert (found.end - found.begin) / found.frequency <= 200
    if steps >= 100:
        assert 0.7 * steps <= found.end <= 0.76 * steps


# ---------------------------------------------------------------- a recipe, run


def small(options):
    """Ten points on a line, above or below zero."""
    x = np.linspace(-1, 1, 64, dtype="float32")[:, None] * np.ones((1, 8), "float32")
    y = (x[:, 0] > 0).astype("int32")

    def build(library, _):
        layers = [
            library.Input((8,)),
            library.layers.Dense(16, "relu"),
            library.layers.Dense(1, "sigmoid"),
        ]
        return library.Sequential(layers)

    return recipe.Recipe(
        name="a small one",
        data=lambda _: recipe.Data(recipe.Arrays(x, y), (x, y), "a line"),
        build=build,
        score=recipe.accuracy,
        loss="binary_crossentropy",
        budget=recipe.budget(options, recipe.Budget(20, 5, batch=8)),
    )


@pytest.mark.parametrize("start", ["gradual", "at once"])
def test_a_run_that_was_stopped_goes_on_with_what_is_missing(tmp_path, capsys, start):
    command = f"--sparsity 0.5 0.75 --seeds 1 --results {tmp_path}/r --work {tmp_path}/w"
    options = recipe.parser("").parse_args([*command.split(), "--start", start])
    recipe.run(options, [small(options)])
    path = tmp_path / "r" / "a-small-one.jsonl"
    whole = stored_runs.read(path)
    assert [each["method"] for each in whole] == ["dense", "dense, longer", "ours", "ours"]
    assert [each["zeros"] for each in whole] == [0, 0, 0.5, 0.75]
    assert whole[3]["bytes"] < whole[1]["bytes"] < whole[1]["bytes, plain"]
    assert whole[0]["score"] > 0.8
    assert whole[3]["bytes, float16"] < whole[3]["bytes"]
    assert whole[3]["score, float16"] == pytest.approx(whole[3]["score"], abs=0.02)
    assert "75 % (0.7500)" in capsys.readouterr().out

    path.write_text("".join(json.dumps(each) + "\n" for each in whole[:3]), encoding="utf-8")
    recipe.run(options, [small(options)])
    again = stored_runs.read(path)
    assert again[:3] == whole[:3]
    assert len(again) == 4
    assert again[3]["score"] == pytest.approx(whole[3]["score"], abs=0.05)
    recipe.run(options, [small(options)])
    assert stored_runs.read(path) == again


def test_a_network_built_with_its_weights_is_not_trained_before(tmp_path):
    command = f"--sparsity 0.5 --seeds 1 --epochs 0 2 --results {tmp_path}/r --work {tmp_path}/w"
    recipe.run(options := recipe.parser("").parse_args(command.split()), [small(options)])
    dense, longer, ours = stored_runs.read(tmp_path / "r" / "a-small-one.jsonl")
    assert (dense["seconds"], longer["steps"], ours["zeros"]) == (0.0, 16, 0.5)


def test_gradual_pruning_ends_where_it_was_told_to(tmp_path):
    command = f"--start gradual --prune-until 0.3 --results {tmp_path} --work {tmp_path}"
    options = recipe.parser("").parse_args(command.split())
    training = pytest.importorskip("lib.training")
    side = training.Side(small(options), 0, tmp_path / "start.npz", options)
    schedule = side.schedule(0.8)  # over five epochs of eight steps
    assert (schedule.end_step, schedule.sparsity_at(12)) == (12, 0.8)
    assert side.schedule(None) is None
    key = recipe.Run(side.recipe, options, tmp_path).key(0, "ours", recipe.Target(0.8))
    assert key["start"] == "gradual until 0.3"


@backend_free
@pytest.mark.parametrize("share", ["0", "1.5"])
def test_gradual_pruning_ends_within_the_training(share):
    options = recipe.parser("").parse_args(["--prune-until", share])
    with pytest.raises(SystemExit, match=f"--prune-until .* Received: {share}"):
        recipe.check(options)


@backend_free
@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--sparsity", "0.8", "80"], "--sparsity .* Received: 80"),
        (["--sparsity", "1"], "--sparsity .* Received: 1"),
        (["--epochs", "4", "0"], "--epochs.* Received: 4 0"),
    ],
)
def test_what_cannot_be_is_said_before_the_first_epoch(given, message):
    with pytest.raises(SystemExit, match=message):
        recipe.check(recipe.parser("").parse_args(given))


@backend_free
def test_runs_on_other_data_do_not_count_as_done(tmp_path):
    options = recipe.parser("").parse_args([])
    run = recipe.Run(small(options), options, tmp_path / "runs.jsonl")
    run.check_source("a line")  # there is no file yet
    run.note({"source": "a line; 3 dB"}, 0, "dense")
    run.check_source("a line; 4 dB")
    with pytest.raises(SystemExit, match=r"other data: 'a line; 3 dB'\. Received: 'a curve'"):
        run.check_source("a curve")
    other = dataclasses.replace(run.recipe.budget, batch=16)
    recipe.Run(dataclasses.replace(run.recipe, budget=other), options, run.path).check_source("b")


def test_weights_that_do_not_fit_are_refused(tmp_path):
    options = recipe.parser("").parse_args(["--work", str(tmp_path)])
    training = pytest.importorskip("lib.training")
    side = training.Side(small(options), 0, tmp_path / "start.npz", options)
    with pytest.raises(ValueError, match="not those of this network"):
        side.measured_with([np.zeros((2, 2))], None)


# ---------------------------------------------------------------- the page


@backend_free
def test_the_page_says_what_the_lines_say(tmp_path, monkeypatch, capsys):
    pytest.importorskip("matplotlib")
    lines = lines_of(3, [0.89, 0.895, 0.9])
    halved = {"bytes, float16": 50, "score, float16": 0.897}
    lines = [each | (halved if each["method"] == "ours" else {}) for each in lines]
    lines += [line(seed, 0.85 + seed / 1000, "tfmot", allocation=None) for seed in range(3)]
    lines = [each | {"published": 94.84, "published dense": 95.23} for each in lines]
    for each in lines:
        stored_runs.append(tmp_path / "a-model.jsonl", each)
    monkeypatch.setattr(sys, "argv", ["results.py", str(tmp_path), "--output", str(tmp_path)])
    results.main()
    assert "2 rows of 1 recipes" in capsys.readouterr().out
    text = (tmp_path / "results.md").read_text(encoding="utf-8")
    assert "| 80 % | 95.23 → 94.84 | 99.6 | **99.4** (98.1 to 100.8) | 3 | short by 0.1 |" in text
    assert "1 settings, 1 where this package is more accurate" in text
    text = (tmp_path / "results-all.md").read_text(encoding="utf-8")
    assert "| 95.23 → 94.84 | 99.59 | 90.00 → 89.50 ± 0.50 | 99.44 (98.06 to 100.82) |" in text
    assert "| 90.00 | 89.50 | 85.10 | 4.40 (3.41 to 5.39) | yes |" in text
    assert "| 0.50 (-0.74 to 1.74) | 2,000 | 1,000 | 100 | 10.0 | 20.0 |" in text
    assert "| 0.30 (0.30 to 0.30) | 2,000 | 1,000 | 50 | 20.0 | 40.0 |" in text
    assert (tmp_path / "results.png").stat().st_size > 5000


@backend_free
def test_no_runs_no_page(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["results.py", str(tmp_path)])
    with pytest.raises(SystemExit, match="make results"):
        results.main()


# ---------------------------------------------------------------- recordings


def recordings(folder, rate=8000):
    """Two digits of two speakers, two recordings each, as FSDD has them."""
    from scipy.io import wavfile

    rng = np.random.default_rng(0)
    folder.mkdir()
    for digit in (0, 1):
        for speaker in ("ann", "bob"):
            for index in (0, 7):
                sound = (3000 * rng.normal(size=rate // 2)).astype("int16")
                wavfile.write(folder / f"{digit}_{speaker}_{index}.wav", rate, sound)


@backend_free
@pytest.mark.filterwarnings("ignore:.*slated for removal:DeprecationWarning")  # librosa's own
def test_spoken_digits_are_split_by_number_or_by_speaker(tmp_path):
    pytest.importorskip("librosa")
    recordings(tmp_path / "recordings")
    assert spoken_words.layout(tmp_path) == "digits"
    official = spoken_words.digits(tmp_path, tmp_path / "w", "official")
    assert (len(official.train), len(official.test[1])) == (4, 4)
    bob = spoken_words.digits(tmp_path, tmp_path / "w", "bob")
    x, y = bob.train.take(np.arange(4))
    assert x.shape == (4, 49, 10, 1)
    assert sorted(y.tolist()) == [0, 0, 1, 1]
    assert x.mean() == pytest.approx(0, abs=1e-4)
    each = [spoken_words.digits(tmp_path, tmp_path / "w", "each", seed=seed) for seed in range(3)]
    assert np.array_equal(each[1].test[0], bob.test[0])  # ann, bob, ann
    assert np.array_equal(each[0].test[0], each[2].test[0])
    assert not np.array_equal(each[0].test[0], each[1].test[0])
    with pytest.raises(SystemExit, match="one of ann, bob"):
        spoken_words.digits(tmp_path, tmp_path / "w", "carl")


@backend_free
def test_missing_recordings_are_said(tmp_path):
    with pytest.raises(SystemExit, match="--data is missing"):
        spoken_words.layout(None)
    with pytest.raises(SystemExit, match=r"no testing_list\.txt"):
        spoken_words.layout(tmp_path)


# ---------------------------------------------------------------- the scripts


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [
        ["mnist_cnn.py", "--width", "0.125"],
        ["imdb_lstm.py", "--words", "1000", "--length", "20", "--units", "16"],
        ["keyword_spotting.py"],
    ],
    ids=lambda command: command[0],
)
def test_the_script_runs(command, tmp_path):
    if command[0] == "keyword_spotting.py":
        pytest.importorskip("librosa")
    methods = ["ours", *(["tfmot"] if os.environ.get("TFMOT_PYTHON") else [])]
    options = ["--results", str(tmp_path / "results"), "--work", str(tmp_path / "work")]
    options += ["--smoke", "--methods", *methods]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run(
        [sys.executable, EXAMPLES / "recipes" / command[0], *command[1:], *options],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    (path,) = (tmp_path / "results").glob("*.jsonl")
    found = {each["method"]: each for each in stored_runs.read(path)}
    assert set(found) == {"dense", "dense, longer", *methods}
    assert all(found[method]["bytes"] < found["dense"]["bytes"] for method in methods)
