"""A transformer that classifies film reviews, pruned with its dense version as teacher.

    KERAS_BACKEND=jax python examples/recipes/transformer.py --data vaderSentiment-3.3.2.tar.gz
    python examples/recipes/transformer.py --data train.tsv --preset bert_tiny_en_uncased

Data: as for `imdb_lstm.py`, with a network of plain Keras layers. With --preset, the KerasHub
classifier of that name or directory (`pip install keras-hub`) is fine-tuned on --data, a file with
lines "label TAB text". Every fifth line is for testing. The embeddings are not pruned.
"""

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from lib import datasets, recipe

OPTIONS = recipe.parser(__doc__)
OPTIONS.set_defaults(methods=["ours", "distilled"])
OPTIONS.add_argument("--words", type=int, default=5000, help="size of the vocabulary")
OPTIONS.add_argument("--length", type=int, default=32, help="number of words read of each review")
OPTIONS.add_argument("--width", type=int, default=64, help="of the stream")
OPTIONS.add_argument("--blocks", type=int, default=2)
OPTIONS.add_argument("--heads", type=int, default=4)
OPTIONS.add_argument("--preset", help="of a KerasHub text classifier, in place of all these")


def network(keras, options):
    """Encoder blocks with the normalization first (Xiong et al. 2020, arXiv:2002.04745)."""
    layers, width = keras.layers, options.width

    class Positions(layers.Layer):
        """Adds a learned vector for each place."""

        def build(self, shape):
            self.places = self.add_weight(
                name="places", shape=shape[1:], initializer="random_normal"
            )
            super().build(shape)

        def call(self, x):
            return x + self.places

    inputs = layers.Input((options.length,))
    x = layers.Embedding(options.words, width)(inputs)
    x = Positions(name="positions")(x)
    for _ in range(options.blocks):
        y = layers.LayerNormalization()(x)
        y = layers.MultiHeadAttention(options.heads, width // options.heads)(y, value=y)
        x = layers.Add()([x, layers.Dropout(0.2)(y)])
        y = layers.LayerNormalization()(x)
        y = layers.Dense(width)(layers.Dense(4 * width, activation="relu")(y))
        x = layers.Add()([x, layers.Dropout(0.2)(y)])
    x = layers.GlobalAveragePooling1D()(layers.LayerNormalization()(x))
    return keras.Model(inputs, layers.Dense(1, activation="sigmoid")(layers.Dropout(0.3)(x)))


def plain(options):
    """The recipe of the network of plain layers."""
    return recipe.Recipe(
        name=f"transformer, {options.blocks} blocks of {options.width}, {options.words} words",
        data=lambda _: datasets.reviews(options),
        build=lambda keras, _: network(keras, options),
        score=recipe.accuracy,
        loss="binary_crossentropy",
        budget=recipe.budget(options, recipe.Budget(3, 3)),
        left_alone="^positions",
    )


# ---------------------------------------------------------------------- KerasHub


def hub():
    """KerasHub, or the command that installs it."""
    try:
        import keras_hub
    except ImportError:
        raise SystemExit("--preset needs KerasHub: pip install keras-hub") from None
    return keras_hub


def labelled(options):
    """The texts of --data as the preset's numbers: tuples of arrays in the order of their names."""
    if not options.data:
        raise SystemExit('--preset needs --data: a file of lines "label TAB text".')
    with open(options.data, encoding="utf-8") as file:
        lines = [line.rstrip("\n").split("\t", 1) for line in file]
    prepare = hub().models.TextClassifierPreprocessor.from_preset(
        options.preset, sequence_length=options.length
    )
    found = prepare([text for _, text in lines])
    names = sorted(found)
    x = tuple(np.asarray(found[name]) for name in names)
    labels = sorted({label for label, _ in lines})
    y = np.array([labels.index(label) for label, _ in lines], "int32")
    tested = np.arange(len(y)) % 5 == 4
    train = recipe.Arrays(tuple(a[~tested] for a in x), y[~tested])
    test = tuple(a[tested] for a in x), y[tested]
    facts = {"names": names, "classes": len(labels), "shapes": [a.shape[1:] for a in x]}
    return recipe.Data(train, test, f"{len(y)} texts", facts)


def classifier(keras, data, options):
    """The preset's classifier, taking its inputs in the order of their names."""
    facts = data.facts
    model = hub().models.TextClassifier.from_preset(
        options.preset, num_classes=facts["classes"], preprocessor=None, activation="softmax"
    )
    named = zip(facts["names"], facts["shapes"], strict=True)
    inputs = {name: keras.Input(shape, dtype="int32", name=name) for name, shape in named}
    return keras.Model(tuple(inputs.values()), model(inputs))


def fine_tuned(options):
    """The recipe of a preset."""
    return recipe.Recipe(
        name=f"KerasHub {options.preset}",
        data=lambda _: labelled(options),
        build=lambda keras, data: classifier(keras, data, options),
        score=recipe.accuracy,
        budget=recipe.budget(
            options, recipe.Budget(3, 3, batch=32, dense_rate=5e-5, pruning_rate=5e-5)
        ),
        left_alone="embedding",
        tfmot=False,
    )


def main():
    options = OPTIONS.parse_args()
    recipe.run(options, [fine_tuned(options) if options.preset else plain(options)])


if __name__ == "__main__":
    main()
