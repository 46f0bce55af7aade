"""Keyword spotting with the DS-CNNs of "Hello Edge" (Zhang et al. 2017, arXiv:1711.07128), pruned.

    KERAS_BACKEND=tensorflow python examples/recipes/keyword_spotting.py --data recordings --size L

Data, given by --data:
- the Free Spoken Digit Dataset: a directory with 0_george_0.wav and so on, or its parent; or an
  .npz with x (int16, 8 kHz, a second each), y, speaker and index. --split official uses the
  recordings below number 5 for testing; --split theo uses a speaker who is not in the training;
  --split each leaves out another speaker for each seed, so that six seeds test with all recordings.
- Google's Speech Commands: the directory with a folder for each word and testing_list.txt.

Tested with a speaker who is not in the training, DS-CNN-L keeps 100.4 % (at 50 % zeros) and 99.6 %
(at 2:4) of the accuracy of the dense network trained for as long (`--size L --split theo --epochs
3 4`, five seeds; published 99.6 and 99.1 %), and 98.1 and 97.3 % of the better of the two dense
networks. Scores of one speaker differ by 2 to 4 points from seed to seed.

Features are computed by librosa: `pip install "keras-pruner[examples]"`.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from lib import recipe, spoken_words

SIZES = {  # filters; strides of the first convolution and of the separable ones
    "S": (64, ((2, 2), 1, 1, 1, 1)),
    "M": (172, ((2, 1), 2, 1, 1, 1)),
    "L": (276, ((2, 1), 2, 1, 1, 1, 1)),
}
BUDGETS = {"S": recipe.Budget(8, 6), "M": recipe.Budget(6, 4), "L": recipe.Budget(3, 2)}
PUBLISHED = {"dense": 95.23, "0.5": 94.84, "2:4": 94.33}  # DS-CNN-L on Speech Commands
OPTIONS = recipe.parser(__doc__, sparsity=(0.5, 0.8, 0.9, 0.95), pattern=("unstructured", "2:4"))
OPTIONS.add_argument("--size", nargs="+", choices=SIZES, default=["S"])
OPTIONS.add_argument("--split", nargs="+", default=["theo", "official"], help="of spoken digits")


def network(keras, size, outputs):
    """DS-CNN of a size."""
    layers = keras.layers
    filters, (first, *strides) = SIZES[size]

    def normed(x):
        return layers.ReLU()(layers.BatchNormalization(momentum=0.9)(x))

    x = inputs = layers.Input((spoken_words.FRAMES, spoken_words.COEFFICIENTS, 1))
    x = normed(layers.Conv2D(filters, (10, 4), first, padding="same", use_bias=False)(x))
    for stride in strides:
        x = normed(layers.DepthwiseConv2D(3, stride, padding="same", use_bias=False)(x))
        x = normed(layers.Conv2D(filters, 1, padding="same", use_bias=False)(x))
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(outputs, activation="softmax")(x))


def sources(options):
    """Name -> seed -> data, for each split."""
    rows = 128 if options.smoke else None
    if options.smoke and options.data is None:
        return {"made-up tones": lambda _: spoken_words.tones()}
    if spoken_words.layout(options.data) == "commands":
        return {
            "Speech Commands": lambda _: spoken_words.commands(options.data, options.work, rows)
        }
    names = {"official": "official split", "each": "each speaker left out"}
    return {
        f"FSDD, {names.get(split, f'{split} left out')}": (
            lambda seed, split=split: spoken_words.digits(
                options.data, options.work, split, rows, seed
            )
        )
        for split in options.split
    }


def recipes(options):
    """A recipe for each size and split."""
    return [
        recipe.Recipe(
            name=f"DS-CNN-{size}, {name}",
            data=data,
            build=lambda keras, data, size=size: network(
                keras, size, 12 if data.source == "Speech Commands" else 10
            ),
            score=recipe.accuracy,
            budget=recipe.budget(options, BUDGETS[size]),
            published=PUBLISHED if size == "L" else {},
        )
        for size in options.size
        for name, data in sources(options).items()
    ]


def main():
    options = OPTIONS.parse_args()
    recipe.run(options, recipes(options))


if __name__ == "__main__":
    main()
