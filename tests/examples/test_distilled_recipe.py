"""A network's dense self as its teacher, as examples/lib/distillation.py has it."""

import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from models import values

import keras_pruner as kp

pytestmark = pytest.mark.one_backend

EXAMPLES = Path(__file__).parents[2] / "examples"
sys.path[:0] = [str(EXAMPLES), str(EXAMPLES / "recipes")]
from lib import recipe, stored_runs

distillation = pytest.importorskip("lib.distillation")


def network(outputs, activation):
    return keras.Sequential(
        [
            keras.Input((8,)),
            keras.layers.Dense(16, activation="relu"),
            keras.layers.Dense(outputs, activation=activation),
        ]
    )


def softmax(z):
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


@pytest.fixture
def rows():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(64, 8)).astype("float32")
    return x, x[:, :3].argmax(-1).astype("int32")


@pytest.mark.parametrize("logits", [True, False])
def test_the_loss_is_that_of_the_labels_and_the_softened_answers(rows, logits):
    x, y = rows
    student, teacher = (network(3, None if logits else "softmax") for _ in range(2))
    taught = distillation.WithTeacher(student, teacher, logits=logits, temperature=2.0, labels=0.25)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=logits)
    taught.compile("sgd", loss=loss)
    z, goal = (values([model(x)])[0].astype("float64") for model in (student, teacher))
    if not logits:
        z, goal = np.log(z), np.log(goal)  # up to a constant that cancels
    p, q = softmax(goal / 2), softmax(z / 2)
    divergence = 4 * np.mean(np.sum(p * np.log(p / q), -1))
    own = -np.mean(np.log(softmax(z)[np.arange(len(y)), y]))
    found = taught.evaluate(x, y, batch_size=64, verbose=0)
    assert found == pytest.approx(0.25 * own + 0.75 * divergence, rel=1e-4)


def test_a_single_sigmoid_is_two_classes(rows):
    x, _ = rows
    student, teacher = (network(1, "sigmoid") for _ in range(2))
    taught = distillation.WithTeacher(student, teacher, logits=False, temperature=1.0, labels=0.0)
    taught.compile("sgd", loss="binary_crossentropy")
    p, q = (values([model(x)])[0].astype("float64") for model in (teacher, student))
    divergence = np.mean(p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q)))
    assert taught.evaluate(x, x[:, 0] > 0, batch_size=64, verbose=0) == pytest.approx(
        divergence, rel=1e-4
    )


def test_the_student_is_pruned_and_the_teacher_stays(rows):
    student = network(3, "softmax")
    teacher = keras.models.clone_model(student)
    teacher.set_weights(student.get_weights())
    before = values(teacher.weights)
    taught = distillation.WithTeacher(student, teacher, logits=False)
    taught.compile("adam", loss="sparse_categorical_crossentropy")
    callback = kp.GradualPruning(0.75, filters=lambda layer: layer.trainable)
    taught.fit(*rows, epochs=4, batch_size=16, verbose=0, callbacks=[callback])
    assert kp.summarize(student).prunable.sparsity == pytest.approx(0.75, abs=0.01)
    assert all(np.array_equal(a, b) for a, b in zip(before, values(teacher.weights), strict=True))
    kernels = {layer.kernel.path for layer in student.layers}
    assert {target.path for target in callback.plan.targets} == kernels


@pytest.mark.parametrize("start", ["at once", "gradual"])
def test_a_recipe_has_it_as_a_method(tmp_path, rows, start):
    x, y = rows

    def build(library, _):
        layers = [library.layers.Dense(16, "relu"), library.layers.Dense(3, "softmax")]
        return library.Sequential([library.Input((8,)), *layers])

    small = recipe.Recipe(
        name="a small one",
        data=lambda _: recipe.Data(recipe.Arrays(x, y), (x, y), "points"),
        build=build,
        score=recipe.accuracy,
        budget=recipe.Budget(10, 5, 8, dense_rate=2e-2, pruning_rate=1e-2),
    )
    command = f"--sparsity 0.5 --seeds 1 --results {tmp_path}/r --work {tmp_path}/w"
    options = recipe.parser("").parse_args(
        [*command.split(), "--methods", "distilled", "--start", start]
    )
    recipe.run(options, [small])
    line = stored_runs.read(tmp_path / "r" / "a-small-one.jsonl")[-1]
    assert (line["method"], line["zeros"]) == ("distilled", 0.5)
    assert line["score"] > 0.6
