"""What a file of a pruned model goes on with: every kind, moment and class of optimizer."""

import keras
import pytest
from models import kernels, mlp, sparsity
from training_files import Stop, assert_equal, fit

import keras_pruner as kp
from keras_pruner.training.optimizer import find

pytestmark = pytest.mark.filterwarnings("ignore:.*before the end of the schedule")


@keras.saving.register_keras_serializable("tests")
class TableAdam(keras.optimizers.Adam):
    """An optimizer class of a user's own."""


def scaled(inner):
    return keras.optimizers.LossScaleOptimizer(inner, initial_scale=8)


OPTIMIZERS = {
    "Keras'": lambda: keras.optimizers.Adam(0.01),
    "scaled": lambda: scaled(keras.optimizers.Adam(0.01)),
    "own": lambda: TableAdam(0.01),
    "scaled own": lambda: scaled(TableAdam(0.01)),
}

LOST = "loaded from an `.h5` file, from which Keras restores neither"
OWN = "cannot resume a pruning under an optimizer class of your own"


def expected(kind, optimizer):
    """The warning when a schedule begins anew; None where it goes on."""
    if kind == ".h5":
        return LOST
    return OWN if kind == ".keras" and "own" in optimizer else None


class Load(keras.callbacks.Callback):
    """Loads the weights of a file when the training begins."""

    def __init__(self, path):
        super().__init__()
        self.path = path

    def on_train_begin(self, logs=None):
        self.model.load_weights(self.path)


def read(kind, path, make):
    """The model, and the callback that loads what a file of weights holds."""
    if kind != ".weights.h5":
        return keras.saving.load_model(path), []
    return mlp(make()), [Load(path)]


@pytest.fixture(scope="module")
def wholes():
    return {}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("kind", [".keras", ".h5", ".weights.h5"])
def test_a_file_of_the_midst_goes_on_or_says_that_it_begins_anew(
    kind, optimizer, wholes, data, tmp_path, recwarn
):
    make = OPTIMIZERS[optimizer]
    if optimizer not in wholes:
        wholes[optimizer] = fit(mlp(make()), data, kp.GradualPruning(0.8))
    part = mlp(make())
    with pytest.raises(KeyboardInterrupt):
        fit(part, data, kp.GradualPruning(0.8), Stop(2))
    path = str(tmp_path / f"part{kind}")
    part.save_weights(path) if kind == ".weights.h5" else part.save(path)
    model, more = read(kind, path, make)
    fit(model, data, kp.GradualPruning(0.8), *more, first=2)
    said = [str(each.message) for each in recwarn if "step 0" in str(each.message)]
    warning = expected(kind, optimizer)
    if warning is None:
        assert said == []
        assert_equal(wholes[optimizer], model)
    else:
        assert len(said) == 1
        assert warning in said[0]
    assert sparsity(kernels(model)) == pytest.approx(0.8)


def test_what_the_warning_of_an_own_class_advises_goes_on_exactly(wholes, data, tmp_path):
    whole = wholes.get("own") or fit(mlp(OPTIMIZERS["own"]()), data, kp.GradualPruning(0.8))
    part, path = mlp(OPTIMIZERS["own"]()), str(tmp_path / "part.keras")
    with pytest.raises(KeyboardInterrupt):
        fit(part, data, kp.GradualPruning(0.8), Stop(2))
    part.save(path)
    model = keras.saving.load_model(path)
    fit(model, data, kp.GradualPruning(0.8), Load(path), first=2)
    assert_equal(whole, model)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*begins without its state")
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("kind", [".keras", ".h5"])
def test_a_file_of_the_end_is_the_users_own(kind, optimizer, data, tmp_path):
    model = fit(mlp(OPTIMIZERS[optimizer]()), data, kp.GradualPruning(0.8))
    model.save(str(tmp_path / f"end{kind}"))
    loaded = keras.saving.load_model(str(tmp_path / f"end{kind}"))
    assert find(loaded) is None
    assert type(loaded.optimizer) is type(model.optimizer)
    fit(loaded, data, kp.KeepZeros(), last=1)
    assert sparsity(kernels(loaded)) == pytest.approx(0.8)
