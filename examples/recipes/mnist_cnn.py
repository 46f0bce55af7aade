"""TFMOT's MNIST example, a convolutional network for digits, dense and pruned.

    KERAS_BACKEND=tensorflow python examples/recipes/mnist_cnn.py --seeds 5 --methods ours tfmot

Data: `keras.datasets.mnist`, or its file mnist.npz given by --data. Without either, the 10,000
digits that come with keras_pruner (8,000 for training, 2,000 for testing).
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from lib import datasets, recipe

OPTIONS = recipe.parser(__doc__)
OPTIONS.add_argument(
    "--width", type=float, default=1.0, help="factor for the number of filters and units"
)


def network(keras, width):
    """The network of TFMOT's example of this name."""
    layers, (few, more, units) = keras.layers, (int(width * n) for n in (32, 64, 1024))
    return keras.Sequential(
        [
            layers.Input((28, 28, 1)),
            layers.Conv2D(few, 5, padding="same", activation="relu"),
            layers.MaxPooling2D(2, 2, padding="same"),
            layers.BatchNormalization(),
            layers.Conv2D(more, 5, padding="same", activation="relu"),
            layers.MaxPooling2D(2, 2, padding="same"),
            layers.Flatten(),
            layers.Dense(units, activation="relu"),
            layers.Dropout(0.4),
            layers.Dense(10, activation="softmax"),
        ]
    )


def recipes(options):
    """The recipe, as the options have it."""
    rows = 1000 if options.smoke else None
    mnist = recipe.Recipe(
        name="MNIST CNN" + (f", width {options.width:g}" if options.width != 1 else ""),
        data=lambda _: datasets.mnist(options.data, options.work, rows),
        build=lambda keras, _: network(keras, options.width),
        score=recipe.accuracy,
        budget=recipe.budget(options, recipe.Budget(4, 3, 128)),
    )
    return [mnist]


def main():
    options = OPTIONS.parse_args()
    recipe.run(options, recipes(options))


if __name__ == "__main__":
    main()
