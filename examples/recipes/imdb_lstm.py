"""TFMOT's IMDB example: an embedding and an LSTM that classify film reviews, pruned.

    KERAS_BACKEND=tensorflow python examples/recipes/imdb_lstm.py --data vaderSentiment-3.3.2.tar.gz

Data: `keras.datasets.imdb`; or, given by --data, the source archive of the package vaderSentiment,
which holds 10,605 rated film snippets (Hutto & Gilbert 2014):
`pip download --no-binary :all: --no-deps vaderSentiment==3.3.2`.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from lib import datasets, recipe

OPTIONS = recipe.parser(__doc__)
OPTIONS.add_argument("--words", type=int, default=20000, help="size of the vocabulary")
OPTIONS.add_argument("--length", type=int, default=100, help="number of words read of each review")
OPTIONS.add_argument("--units", type=int, default=128, help="units of the embedding and the LSTM")


def network(keras, options):
    """The network of TFMOT's example of this name."""
    layers = keras.layers
    return keras.Sequential(
        [
            layers.Input((options.length,)),
            layers.Embedding(options.words, options.units),
            layers.LSTM(options.units),
            layers.Dropout(0.5),
            layers.Dense(1, activation="sigmoid"),
        ]
    )


def recipes(options):
    """The recipe, as the options have it."""
    size = f"{options.words} words, {options.units} units"
    reviews = recipe.Recipe(
        name=f"IMDB LSTM, {size}",
        data=lambda _: datasets.reviews(options),
        build=lambda keras, _: network(keras, options),
        score=recipe.accuracy,
        loss="binary_crossentropy",
        budget=recipe.budget(options, recipe.Budget(3, 2, 128)),
    )
    return [reviews]


def main():
    options = OPTIONS.parse_args()
    recipe.run(options, recipes(options))


if __name__ == "__main__":
    main()
