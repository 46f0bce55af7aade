"""A recogniser of spoken digit sequences, trained with CTC (Graves et al., 2006) and pruned.

    KERAS_BACKEND=jax python examples/recipes/speech_recognition.py --data recordings

Convolutions and an LSTM over log-mel frames recognise the digits in a second or two of speech, in
their order, without alignments. The score is 1 - the word error rate.

Data, given by --data: the Free Spoken Digit Dataset, a directory with 0_george_0.wav and so on, or
an .npz with x (int16, 8 kHz, a second each), y, speaker and index. Sequences are made by joining 3
to 6 recordings of one speaker with small pauses; those of the test side use the recordings below
number 5 only (the official split), those of the training side only the others. Features are
computed by librosa: `pip install "keras-pruner[examples]"`.
"""

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from lib import recipe, spoken_words
from lib.datasets import cached

RATE, HOP, MELS = 8000, 100, 32
FRAMES = 280  # three and a half seconds
LONGEST = 6  # digits
OPTIONS = recipe.parser(__doc__)
OPTIONS.set_defaults(start="gradual")
OPTIONS.add_argument("--units", type=int, default=96, help="units of the LSTM and the convolutions")
OPTIONS.add_argument("--sequences", type=int, default=2400, help="to train with")
OPTIONS.add_argument("--tests", type=int, default=400, help="number of test sequences")
OPTIONS.add_argument(
    "--beams", type=int, default=1, help="width of the beam search; 1 takes the most likely path"
)


# ------------------------------------------------------------------ sequences


def joined(found, chosen, count, seed):
    """Log-mel frames and labels of sequences of the chosen recordings.

    Returns:
        x (count, FRAMES, MELS), and y (count, LONGEST) with digit + 1, filled up with 0.
    """
    rng = np.random.default_rng(seed)
    speakers = sorted(set(found["speaker"][chosen].tolist()))
    x, y = [], np.zeros((count, LONGEST), "int32")
    while len(x) < count:
        speaker = speakers[rng.integers(len(speakers))]
        own = chosen[found["speaker"][chosen] == speaker]
        said = rng.choice(own, rng.integers(3, LONGEST + 1))
        pauses = [np.zeros(rng.integers(RATE // 10)) for _ in said]
        parts = [part for i, pause in zip(said, pauses, strict=True)
                 for part in (pause, found["sounds"][i])]  # fmt: skip
        sound = np.concatenate(parts)
        if len(sound) > (FRAMES - 1) * HOP:
            continue  # drawn again
        y[len(x), : len(said)] = found["y"][said] + 1
        x.append(log_mel(sound))
    return np.stack(x), y


def log_mel(sound):
    """Frames (FRAMES, MELS) of a sound, with silence behind it; about 0 to 1."""
    import librosa

    filled = np.zeros((FRAMES - 1) * HOP, "float32")
    filled[: len(sound)] = sound
    power = librosa.feature.melspectrogram(
        y=filled, sr=RATE, n_fft=256, hop_length=HOP, n_mels=MELS
    )
    return (1 + np.log10(power.T + 1e-6) / 6).astype("float32")


def data(options):
    """The sequences of both sides."""
    counts = (64, 16) if options.smoke else (options.sequences, options.tests)

    def make():
        if options.smoke and not options.data:
            found = spoken_words.made_up()
        else:
            found = spoken_words.recordings(options.data)
        test = found["index"] < 5
        parts = {}
        for name, chosen, count in (("", ~test, counts[0]), ("_test", test, counts[1])):
            x, y = joined(found, np.flatnonzero(chosen), count, seed=len(name))
            parts |= {f"x{name}": x, f"y{name}": y}
        return parts

    stamp = spoken_words.stamp(options.data or "made up")
    kept = cached(options.work / f"sequences-{stamp}-{counts[0]}-{counts[1]}.npz", make)
    train = recipe.Arrays(kept["x"], kept["y"])
    source = "FSDD, joined, official split" if options.data else "made-up tones, joined"
    return recipe.Data(train, (kept["x_test"], kept["y_test"]), source)


# ------------------------------------------------------------------ the model


def network(keras, units):
    """Log-mel frames -> logits of the blank and the ten digits, for every fourth frame."""
    layers = keras.layers

    def convolved(x, filters, strides):
        x = layers.Conv1D(filters, 5, strides, padding="same", use_bias=False)(x)
        return layers.ReLU()(layers.BatchNormalization(momentum=0.9)(x))

    inputs = layers.Input((FRAMES, MELS))
    x = convolved(inputs, units // 2, 2)
    x = convolved(x, units, 2)
    x = convolved(x, units, 1)
    x = layers.LSTM(units, return_sequences=True)(x)
    x = layers.Dropout(0.2)(x)
    return keras.Model(inputs, layers.Dense(11)(x))


def ctc(keras):
    """The CTC loss; label 0 is the blank. Keras 2 has none."""
    if keras.__name__ != "tf_keras":
        return keras.losses.CTC()
    import tensorflow as tf

    def loss(y, logits):
        y = tf.cast(y, "int32")
        said = tf.math.count_nonzero(y, axis=1, dtype="int32")
        frames = tf.fill(tf.shape(y)[:1], tf.shape(logits)[1])
        return tf.nn.ctc_loss(y, logits, said, frames, logits_time_major=False, blank_index=0)

    return loss


def words_right(model, data, beams):
    """1 - the word error rate of the test sequences."""
    import keras

    x, y = data.test
    logits = model.predict(x, batch_size=100, verbose=0)
    how = {"strategy": "beam_search", "beam_width": beams, "top_paths": 1} if beams > 1 else {}
    frames = np.full(len(x), logits.shape[1])
    found, _ = keras.ops.ctc_decode(logits, frames, mask_index=0, **how)
    found = keras.ops.convert_to_numpy(found)[0]
    pairs = [(row[row > 0], said[said > 0]) for row, said in zip(found, y, strict=True)]
    return 1 - sum(edits(*pair) for pair in pairs) / sum(len(said) for _, said in pairs)


def edits(found, said):
    """The fewest words to insert, delete or replace to make one sequence the other."""
    row = np.arange(len(said) + 1)
    for i, word in enumerate(found, 1):
        before, row = row, row.copy()
        row[0] = i
        for j, other in enumerate(said, 1):
            row[j] = min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (word != other))
    return int(row[-1])


def recipes(options):
    """The recipe, as the options have it."""
    if not (options.smoke and options.data is None):
        spoken_words.layout(options.data)
    recognition = recipe.Recipe(
        name=f"CTC, digit sequences, {options.units} units",
        data=lambda _: data(options),
        build=lambda keras, _: network(keras, options.units),
        score=lambda model, data: words_right(model, data, options.beams),
        measure="1 - word error rate",
        loss=ctc,
        budget=recipe.budget(options, recipe.Budget(12, 8, 32, 3e-3, 2e-3)),
    )
    return [recognition]


def main():
    options = OPTIONS.parse_args()
    recipe.run(options, recipes(options))


if __name__ == "__main__":
    main()
