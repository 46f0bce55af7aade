"""Networks of examples/recipes, trained and pruned, for the benchmarks; weights are kept in files.

A network is trained only if its weights are not in the directory. So a long benchmark can be
interrupted, and the networks can be prepared one by one.
"""

import dataclasses
import sys
from pathlib import Path

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
sys.path[:0] = [str(EXAMPLES), str(EXAMPLES / "recipes")]

from lib import recipe, training  # noqa: E402


@dataclasses.dataclass(frozen=True)
class Choice:
    """How a recipe is run here.

    Attributes:
        epochs: dense ones, then those with zeros; so few that a seed takes minutes.
        sparsities: 80 %, and that of the table in the README.
        options: the other options of the recipe.
    """

    epochs: tuple[int, int]
    sparsities: tuple[float, ...]
    options: tuple[str, ...] = ()


NETWORKS = {
    "demo": Choice((4, 4), (0.8,)),
    "mnist": Choice((2, 1), (0.8, 0.98)),
    "ds-cnn-l": Choice((2, 1), (0.8, 0.92), ("--size", "L", "--split", "official")),
    "ctc": Choice((6, 4), (0.8, 0.88)),
    "lstm": Choice((3, 2), (0.8, 0.86), ("--words", "5000", "--length", "30", "--units", "32")),
    "mobilenet-v2": Choice((2, 1), (0.8, 0.9), ("--model", "v2")),
}
SPEECH, REVIEWS = ("ds-cnn-l", "ctc"), ("lstm",)  # the networks that need data of the user


@dataclasses.dataclass(frozen=True)
class Trained:
    """One network with one seed.

    Attributes:
        name: a key of `NETWORKS`.
        side: trains and measures it.
    """

    name: str
    side: training.Side

    @property
    def sparsities(self):
        """The sparsities of the tables."""
        return NETWORKS[self.name].sparsities

    def file(self, sparsity):
        """Where the weights at a sparsity are kept."""
        start, epochs = self.side.start, self.side.recipe.budget.pruning_epochs
        return start.with_name(f"{start.stem}-{sparsity:g}-{epochs}.npz")

    def pruned(self, sparsity):
        """The network at a sparsity, trained if its weights are not there."""
        side, file = self.side, self.file(sparsity)
        if not file.exists():
            model = side.started()
            side.fit(model, False, side.pruning(model, recipe.Target(sparsity)))
            training.write_weights(file, model.get_weights())
        model = side.fresh()
        model.set_weights(training.read_weights(file))
        return model

    def score(self, model):
        """A fraction; higher is better."""
        return self.side.recipe.score(model, self.side.data)


def trained(name, seed, work, speech=None, reviews=None):
    """A network with a seed; its weights and features are kept in the directory `work`.

    Args:
        speech, reviews: the user's copies of the data, as --help of keyword_spotting.py and
            imdb_lstm.py describes.
    """
    choice = NETWORKS[name]
    arguments = [*choice.options, "--work", str(work), "--epochs", *map(str, choice.epochs)]
    data = speech if name in SPEECH else reviews if name in REVIEWS else None
    if data:
        arguments += ["--data", str(data)]
    script = _script(name)
    options = script.OPTIONS.parse_args(arguments)
    (chosen,) = script.recipes(options)
    start = recipe.Run(chosen, options, Path(work)).start(seed)
    return Trained(name, training.Side(chosen, seed, start, options))


def _script(name):
    """The module of a recipe: options and recipes."""
    if name == "demo":
        return _Demo
    import imagenet
    import imdb_lstm
    import keyword_spotting
    import mnist_cnn
    import speech_recognition

    return {
        "mnist": mnist_cnn,
        "ds-cnn-l": keyword_spotting,
        "ctc": speech_recognition,
        "lstm": imdb_lstm,
        "mobilenet-v2": imagenet,
    }[name]


class _Demo:
    """The network of `keras-pruner demo` as a recipe."""

    OPTIONS = recipe.parser("The network of `keras-pruner demo`.")
    OPTIONS.set_defaults(start="gradual")

    @staticmethod
    def recipes(options):
        from keras_pruner.cli import demo

        def data(_):
            x, y, *test = demo.digits()
            return recipe.Data(recipe.Arrays(x, y), test, "10,000 digits of MNIST")

        budget = recipe.Budget(4, 4, demo.BATCH_SIZE, 2e-3, 5e-4)
        return [
            recipe.Recipe(
                name="demo CNN",
                data=data,
                build=lambda _keras, _data: demo.network(),
                score=recipe.accuracy,
                budget=recipe.budget(options, budget),
            )
        ]
