"""What a kill leaves of a backup, at every moment while it is written, and what is restored of it.

A killed process leaves what it has written so far. So one training shows all moments: while a
callback saves, the directory is looked at at the end of every call that Python makes.
"""

import json
import os
import sys

import keras
import numpy as np
import pytest
from models import compile_, mlp, values

import keras_pruner as kp
from keras_pruner.callbacks import AtomicBackup

SCHEDULE = kp.PolynomialDecay(0.75, initial_sparsity=0.25, end_step=8, frequency=2)
EPOCHS = 2


def options(**more):
    return {"epochs": 2, "batch_size": 16, "shuffle": False, "verbose": 0, **more}


def network():
    """With dropout, whose seeds belong to the state."""
    keras.utils.set_random_seed(3)
    layers = [
        keras.Input((8,)),
        keras.layers.Dense(6, activation="relu", name="hidden"),
        keras.layers.Dropout(0.3),
        keras.layers.Dense(3, name="head"),
    ]
    return keras.Sequential(layers)


def content(directory):
    """All that is in a directory: files with what they hold, folders with nothing."""
    found = []
    for entry in os.scandir(directory):
        if entry.is_dir():
            found.append((entry.name, content(entry)))
        else:
            with open(entry, "rb") as file:
                found.append((entry.name, file.read()))
    return tuple(found)


def write_again(left, directory):
    directory.mkdir()
    for name, held in left:
        if isinstance(held, tuple):
            write_again(held, directory / name)
        else:
            (directory / name).write_bytes(held)


def moments(directory, save):
    """The different contents of a directory while `save` runs, in order."""
    seen = {content(directory): None}

    def look(frame, event, argument):
        if event.endswith("return"):
            seen.setdefault(content(directory))

    sys.setprofile(look)
    try:
        save()
    finally:
        sys.setprofile(None)
    seen.setdefault(content(directory))
    return list(seen)


def saved_by_keras(model):
    """The values that Keras saves: all but the seeds."""
    return values([*model.weights, *model.optimizer.variables])


def same(mine, others):
    return all(map(np.array_equal, mine, others))


def trained_under(backup, directory, data, *, pruned=True):
    """Values and seeds at the end of each epoch, and what kills leave while it is backed up."""
    directory.mkdir()
    ends, left = {}, {}
    on_epoch_end = backup.on_epoch_end

    def watched(epoch, logs=None):
        left[epoch + 1] = moments(directory, lambda: on_epoch_end(epoch, logs))
        model = backup.model
        ends[epoch + 1] = saved_by_keras(model), values(model.variables)

    backup.on_epoch_end = watched
    compile_(model := network())
    pruning = [kp.GradualPruning(SCHEDULE)] if pruned else []
    model.fit(*data, callbacks=[*pruning, backup], **options(epochs=EPOCHS))
    assert sorted(ends) == list(range(1, EPOCHS + 1))
    return ends, left


class Restored:
    """One model into which every backup is restored, as `fit` does when it begins."""

    def __init__(self, *, pruned=True):
        self.model, optimizer = network(), keras.optimizers.Adam(0.01)
        if pruned:
            optimizer = kp.Pruner(self.model, SCHEDULE).wrap(optimizer)
        compile_(self.model, optimizer)

    def by(self, backup):
        """The epoch that `fit` would begin with; all values are restored."""
        self.model._initial_epoch = None
        backup.set_params({"epochs": EPOCHS + 1})
        backup.set_model(self.model)
        backup.on_train_begin()
        return self.model._initial_epoch or 0


def test_a_kill_at_any_moment_of_a_backup_leaves_a_complete_one(data, tmp_path):
    watched = tmp_path / "watched"
    ends, left = trained_under(AtomicBackup(watched), watched, data)
    restored = Restored()
    for last, contents in left.items():
        assert len(contents) > 10
        epochs = []
        for i, each in enumerate(contents):
            write_again(each, directory := tmp_path / f"{last}-{i}")
            epochs.append(restored.by(AtomicBackup(directory)))
            if epochs[-1]:
                assert same(saved_by_keras(restored.model), ends[epochs[-1]][0])
                assert same(values(restored.model.variables), ends[epochs[-1]][1])
        assert sorted({*epochs}) == [last - 1, last]
        assert epochs == sorted(epochs)


@pytest.mark.parametrize(
    ("double", "pruned"), [(True, True), (True, False), (False, False)], ids=repr
)
def test_what_a_kill_within_a_backup_of_keras_leaves(data, tmp_path, double, pruned):
    """It is refused before anything is trained, or repeats an epoch; masks are the weights' own.

    With `double_checkpoint` it is refused in the first backup alone, before which there is no
    other, and where the number of the epoch is half written. Dense as well: it is Keras' own.
    """
    watched = tmp_path / "watched"

    def of(directory):
        return keras.callbacks.BackupAndRestore(directory, double_checkpoint=double)

    backup = of(watched)
    backup.delete_checkpoint = False
    ends, left = trained_under(backup, watched, data, pruned=pruned)
    restored = Restored(pruned=pruned)
    refused, repeated = {}, 0
    for last, contents in left.items():
        for i, each in enumerate(contents):
            write_again(each, directory := tmp_path / f"{last}-{i}")
            before = saved_by_keras(restored.model)
            try:
                number = restored.by(of(directory))
            except (OSError, json.JSONDecodeError) as error:
                refused.setdefault(last, []).append(type(error))
                continue
            now = saved_by_keras(restored.model)
            if number == 0 and same(now, before):
                assert last == 1
                continue
            (behind,) = [e for e in {last, last - 1} & set(ends) if same(now, ends[e][0])]
            assert number in (behind, behind - 1)
            repeated += number < behind
    assert repeated
    assert set(refused) == set(left)
    for last, errors in refused.items():
        assert errors[-1] is json.JSONDecodeError
        assert (OSError in errors) == (last == 1 or not double)


def test_a_backup_of_another_plan_is_an_error_that_lists_the_difference(data, tmp_path):
    schedule = kp.PolynomialDecay(0.8, end_step=16, frequency=2)
    head = kp.GradualPruning(schedule, filters="head")
    mlp().fit(*data, callbacks=[head, AtomicBackup(tmp_path)], **options(epochs=4))
    with pytest.raises(ValueError, match=r"another plan: 1 masks.*hidden/kernel"):
        mlp().fit(
            *data,
            callbacks=[kp.GradualPruning(schedule), AtomicBackup(tmp_path)],
            **options(epochs=5),
        )


@pytest.mark.parametrize(
    ("pruning", "difference"),
    [
        (lambda: kp.GradualPruning(0.9), "final sparsity was 0.75 and is 0.9"),
        (lambda: kp.GradualPruning(0.75, pattern=kp.NM(1, 4)), "pattern was 'Unstructured.*NM"),
        (lambda: kp.GradualPruning(0.75, allocation="erk"), "allocation was 'lamp' and is 'erk'"),
        (lambda: kp.GradualPruning(0.75, criterion=np.square), "criterion was 'magnitude'"),
        (lambda: kp.GradualPruning(0.75, overrides={"head": 0.5}), "single weights was .*0.5"),
        (lambda: kp.KeepZeros(), "final sparsity was 0.75 and is 0.0"),
    ],
)
def test_a_backup_of_another_pruning_is_refused_with_what_to_do(
    pruning, difference, data, tmp_path
):
    mlp().fit(*data, callbacks=[kp.GradualPruning(0.75), AtomicBackup(tmp_path)], **options())
    with pytest.raises(ValueError, match=rf"{difference}.*kp\.GradualPruning\(0\.75\).*directory"):
        mlp().fit(*data, callbacks=[pruning(), AtomicBackup(tmp_path)], **options(epochs=4))


def test_a_backup_of_the_same_pruning_goes_on_in_a_longer_training(data, tmp_path):
    for epochs in (2, 4):
        callbacks = [kp.GradualPruning(0.75), AtomicBackup(tmp_path)]
        history = mlp().fit(*data, callbacks=callbacks, **options(epochs=epochs))
    assert history.epoch == [2, 3]
    assert history.history["sparsity"] == pytest.approx([0.75, 0.75], abs=0.01)


def test_a_dense_backup_is_an_error_in_a_pruned_run(data, tmp_path):
    mlp().fit(*data, callbacks=[AtomicBackup(tmp_path)], **options())
    with pytest.raises(ValueError, match="holds no pruning state"):
        mlp().fit(
            *data,
            callbacks=[kp.GradualPruning(0.8), AtomicBackup(tmp_path)],
            **options(),
        )


def test_when_nothing_is_left_to_train_it_says_so(data, tmp_path):
    def fit(model):
        callbacks = [kp.GradualPruning(0.8), AtomicBackup(tmp_path)]
        model.fit(*data, callbacks=callbacks, **options())
        return model

    first = fit(mlp())
    with pytest.warns(UserWarning, match="Nothing is left to train"):
        again = fit(mlp())
    for a, b in zip(first.weights, again.weights, strict=True):
        np.testing.assert_array_equal(*(keras.ops.convert_to_numpy(v) for v in (a, b)))
    assert [path.name for path in tmp_path.iterdir()] == ["epoch-2"]


def test_a_model_without_weights_is_refused(data, tmp_path):
    class Unbuilt(keras.Model):
        def __init__(self):
            super().__init__()
            self.head = keras.layers.Dense(3)

        def call(self, x):
            return self.head(x)

    backup = AtomicBackup(tmp_path)
    backup.set_model(Unbuilt())
    with pytest.raises(ValueError, match="needs a built model"):
        backup.on_train_begin()


def test_after_an_interruption_a_training_without_backup_begins_where_it_is_told(data, tmp_path):
    model = network()
    compile_(model).fit(*data, callbacks=[AtomicBackup(tmp_path)], **options())

    class Interrupt(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        model.fit(*data, callbacks=[AtomicBackup(tmp_path), Interrupt()], **options(epochs=4))
    assert model.fit(*data, **options(epochs=3)).epoch == [0, 1, 2]
