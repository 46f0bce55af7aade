"""KerasTuner scores and keeps the best epoch of a trial, which must be a sparse one."""

from typing import ClassVar

import keras
import pytest
from models import kernels, mlp, sparsity

import keras_pruner as kp

keras_tuner = pytest.importorskip("keras_tuner")

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


class Score(keras.callbacks.Callback):
    """The loss of sparse epochs; as it is maximized, a first dense epoch would be the best."""

    given: ClassVar = []  # by the copies that KerasTuner makes

    def on_epoch_end(self, epoch, logs=None):
        is_sparse = logs["sparsity"] > 0.79
        logs["sparse_loss"] = logs["loss"] if is_sparse else -1.0
        self.given.append(logs["sparse_loss"])


def search(objective, callbacks, data, folder):
    tuner = keras_tuner.GridSearch(
        lambda hp: mlp(keras.optimizers.SGD(hp.Fixed("rate", 0.5))),
        objective=keras_tuner.Objective(objective, "max"),
        max_trials=1,
        directory=folder,
    )
    tuner.search(*data, epochs=4, batch_size=16, verbose=0, callbacks=callbacks)
    trial = tuner.oracle.get_best_trials()[0]
    return sparsity(kernels(tuner.get_best_models()[0])), trial


def test_the_best_model_is_from_before_the_zeros_and_that_is_told(data, tmp_path):
    with pytest.warns(UserWarning, match=r"SaveBestEpoch.*denser than the model.*KerasTuner"):
        found, _ = search("loss", [kp.GradualPruning(0.8)], data, tmp_path)
    assert found < 0.7


def test_with_a_score_of_sparse_epochs_model_and_score_are_sparse(data, tmp_path):
    callbacks = [kp.GradualPruning(0.8), Score()]
    found, trial = search("sparse_loss", callbacks, data, tmp_path)
    assert found == pytest.approx(0.8)
    assert Score.given[0] == -1
    assert trial.score == pytest.approx(max(Score.given))
