"""The pictures and networks of examples/recipes/imagenet.py, and its transformer's neighbour."""

import sys
from pathlib import Path

import keras
import numpy as np
import pytest

import keras_pruner as kp

pytestmark = pytest.mark.one_backend

EXAMPLES = Path(__file__).parents[2] / "examples"
sys.path[:0] = [str(EXAMPLES), str(EXAMPLES / "recipes")]
import imagenet
from lib import images, recipe, stored_runs

backend_free = pytest.mark.backend_free


@pytest.fixture
def folder(tmp_path):
    """Two classes, bright and dark, of pictures that are not square."""
    image = pytest.importorskip("PIL.Image")
    rng = np.random.default_rng(0)
    for part, number in (("train", 6), ("val", 3)):
        for name, base in (("bright", 200), ("dark", 20)):
            place = tmp_path / "set" / part / name
            place.mkdir(parents=True)
            for i in range(number):
                pixels = base + rng.integers(0, 30, (40, 60, 3))
                image.fromarray(pixels.astype("uint8")).save(place / f"{i}.png")
    return tmp_path / "set"


@backend_free
def test_a_directory_of_classes(folder):
    data = images.directory(folder, 32)
    assert (len(data.train), len(data.test), data.facts) == (12, 6, {"size": 32, "classes": 2})
    x, y = data.test.take(np.array([0, 5]))
    assert (x.shape, x.dtype, y.tolist()) == ((2, 32, 32, 3), np.uint8, [0, 1])
    assert x[0].min() >= 200 > 50 > x[1].max()


@backend_free
def test_a_batch_is_cropped_the_same_again_and_another_one_otherwise(folder):
    train = images.directory(folder, 32).train
    one, again = (train.take(np.array([0, 1, 2]))[0] for _ in range(2))
    other = train.take(np.array([0, 2, 1]))[0]
    assert np.array_equal(one, again)
    assert not np.array_equal(one[0], other[0])


@backend_free
def test_the_middle_is_seven_eighths_of_the_shorter_side():
    image = pytest.importorskip("PIL.Image")
    pixels = np.zeros((80, 160, 3), "uint8")
    pixels[5:75, 45:115] = 255  # 70 = 7/8 * 80, in the middle
    found = images.fitted(image.fromarray(pixels), 70, None)
    assert found.min() == 255


@backend_free
@pytest.mark.parametrize("missing", ["val", "train/dark"])
def test_a_wrong_directory_is_refused_with_the_layout(folder, missing):
    folder.joinpath(missing).rename(folder / "elsewhere")
    with pytest.raises(SystemExit, match=r"train/CLASS/\*\.jpg"):
        images.directory(folder, 32)


@backend_free
def test_digits_become_coloured_pictures(tmp_path):
    pytest.importorskip("PIL.Image")
    grey = np.arange(2 * 28 * 28).reshape(2, 28, 28) % 256
    found = images.resized(grey.astype("uint8"), 32)
    assert (found.shape, found.dtype) == ((2, 32, 32, 3), np.uint8)
    assert np.array_equal(found[..., 0], found[..., 2])


@backend_free
def test_inception_is_refused_where_pictures_are_small():
    options = imagenet.OPTIONS.parse_args(["--model", "inception", "--size", "64"])
    with pytest.raises(SystemExit, match="--size 75 and more"):
        list(imagenet.recipes(options))


def test_a_narrow_network_has_a_part_of_the_filters():
    inputs = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(32, 3, use_bias=False, name="wide")(inputs)
    x = keras.layers.BatchNormalization()(x)
    x = keras.layers.Conv2D(12, 3, name="few")(x)
    model = keras.Model(inputs, keras.layers.Dense(4, name="head")(keras.layers.Flatten()(x)))
    narrow = imagenet.narrowed(keras, model, 0.5)
    assert [narrow.get_layer(name).filters for name in ("wide", "few")] == [16, 8]  # 8 at least
    assert narrow.output_shape == (None, 4)


@pytest.mark.slow
def test_the_first_and_the_depthwise_convolutions_are_left_alone():
    data = recipe.Data(None, None, "", {"size": 32, "classes": 2})
    for model, first in (("v1", "conv1"), ("v2", "Conv1")):
        found = imagenet.network(keras, model, data, 0.35)
        (made,) = imagenet.recipes(imagenet.OPTIONS.parse_args(["--model", model]))
        plan = kp.plan(
            found, 0.5, filters=lambda layer, made=made: not made.leaves_alone(layer.name)
        )
        pruned = {target.path.split("/")[0] for target in plan.targets}
        assert first not in pruned
        assert not any("depthwise" in name or name.endswith("dw") for name in pruned)
        assert len(pruned) > 13


@pytest.mark.slow
@pytest.mark.parametrize("script", ["imagenet", "transformer"])
def test_the_script_runs_from_end_to_end(tmp_path, script, monkeypatch):
    pytest.importorskip("PIL.Image")
    command = f"--smoke --results {tmp_path}/r --work {tmp_path}/w"
    if script == "imagenet":
        command += " --model v1 --images digits"
    monkeypatch.setattr(sys, "argv", [script, *command.split()])
    __import__(script).main()
    (path,) = (tmp_path / "r").glob("*.jsonl")
    methods = [line["method"] for line in stored_runs.read(path)]
    last = ["ours"] if script == "imagenet" else ["ours", "distilled"]
    assert methods == ["dense", "dense, longer", *last, *(["ours"] if script == "imagenet" else [])]
