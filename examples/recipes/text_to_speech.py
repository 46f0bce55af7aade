"""A small acoustic model: text and speaker to mel spectrogram, pruned.

    KERAS_BACKEND=jax python examples/recipes/text_to_speech.py --data recordings --wav spoken

Similar to FastSpeech (Ren et al., 2019): no attention and no loop, all frames at once. A small
duration model predicts the length of the utterance; convolutions over the positions of its frames,
given letters and speaker, predict the spectrum. FastSpeech predicts a length for each phoneme,
which would need an aligner; here there is one length for the whole utterance.

Data, given by --data: the Free Spoken Digit Dataset, a directory with 0_george_0.wav and so on, or
an .npz with x (int16, 8 kHz, a second each), y, speaker and index. The text of a recording is
its word. The recordings below number 5 are for testing (the official split).

Measure: mel cepstral distortion in dB (Kubichek, 1993) between the predicted spectrum, at its own
length, and each test recording, aligned by dynamic time warping. For comparison: the distortion of
another recording of the same word and speaker, and of silence. The score is 1 - distortion /
distortion of silence. Note that this measure favours a smooth average over any real recording.
Spectra, alignment and --wav, through Griffin and Lim's algorithm, are librosa's:
`pip install "keras-pruner[examples]"`.
"""

import string
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from lib import recipe, spoken_words
from lib.datasets import cached

RATE, WINDOW, HOP, MELS = 8000, 512, 128, 40
FRAMES = 64  # a second
QUIET = -5.0  # log10 of the power of silence
CEPSTRA = 13
FIELDS = ("letters", "speaker", "spectrum", "length")
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
LETTERS = max(map(len, WORDS))
OPTIONS = recipe.parser(__doc__)
OPTIONS.set_defaults(start="gradual")
OPTIONS.add_argument("--units", type=int, default=96, help="filters of a convolution")
OPTIONS.add_argument(
    "--wav", type=Path, metavar="DIR", help="directory for sound files of all networks"
)


# ------------------------------------------------------------------ spectra


def spectrum(sound):
    """Log-mel frames (n, MELS) of a sound, and n; filled up with silence to FRAMES."""
    import librosa

    power = librosa.feature.melspectrogram(
        y=sound[: (FRAMES - 1) * HOP], sr=RATE, n_fft=WINDOW, hop_length=HOP, n_mels=MELS
    )
    frames = np.log10(np.maximum(power.T, 10**QUIET))
    filled = np.full((FRAMES, MELS), QUIET, "float32")
    filled[: len(frames)] = frames
    return filled, len(frames)


def letters(digit):
    """The letters of a digit's word as numbers from 1, filled up with 0."""
    word = WORDS[digit].ljust(LETTERS)
    return [string.ascii_lowercase.find(letter) + 1 for letter in word]


def places(lengths):
    """What every frame knows of its place: (n, FRAMES, 8), waves over the utterance, and its end.

    The last two are the seconds since the beginning and since the end.
    """
    frame, lengths = np.arange(FRAMES)[None], np.asarray(lengths, float)[:, None]
    part = frame / lengths
    waves = [wave(np.pi * k * np.clip(part, 0, 1)) for k in (1, 2, 4) for wave in (np.sin, np.cos)]
    seconds = [(frame + 0 * lengths) * HOP / RATE, (frame - lengths) * HOP / RATE]
    return np.stack([*waves, *seconds], -1).astype("float32")


def data(options):
    """Letters, speaker and places of the training side, spectrum and length; and the test."""
    name = "made up" if options.data is None else options.data
    found = cached(
        options.work / f"spectra-{spoken_words.stamp(name)}-{options.smoke}.npz",
        lambda: spectra(options),
    )
    train, held = ({name: found[side + name] for name in FIELDS} for side in ("", "test "))
    x = train["letters"], train["speaker"], places(train["length"])
    other, silence = float(found["other"]), float(found["silence"])
    source = "made-up tones" if options.data is None else "FSDD, official split"
    return recipe.Data(
        recipe.Arrays(x, (train["spectrum"], train["length"][:, None] / FRAMES)),
        held,
        f"{source}; another recording {other:.2f} dB, silence {silence:.2f} dB",
        {"speakers": int(train["speaker"].max()) + 1, "silence": silence},
    )


def spectra(options):
    """What `data` keeps: both sides, and the distortions to compare with."""
    if options.data is None:
        found = spoken_words.made_up()
    else:
        found = spoken_words.recordings(options.data)
    made, lengths = zip(*map(spectrum, found["sounds"]), strict=True)
    speakers = sorted(set(found["speaker"].tolist()))
    parts = {
        "letters": np.array([letters(digit) for digit in found["y"]], "int32"),
        "speaker": np.array([[speakers.index(s)] for s in found["speaker"]], "int32"),
        "spectrum": np.stack(made),
        "length": np.array(lengths, "float32"),
    }
    test = found["index"] < 5
    train = {name: part[~test] for name, part in parts.items()}
    held = {name: part[test][: 20 if options.smoke else None] for name, part in parts.items()}
    return {
        **train,
        **{f"test {name}": part for name, part in held.items()},
        "other": distortions([other_recording(train, row) for row in rows(held)], held),
        "silence": distortions(np.full((len(held["length"]), 1, MELS), QUIET), held),
    }


def rows(side):
    """The recordings of a side, each as a dictionary."""
    return [dict(zip(side, row, strict=True)) for row in zip(*side.values(), strict=True)]


def other_recording(train, row):
    """The spectrum of the first training recording of the same word and speaker."""
    same = [(train[name] == row[name]).all(1) for name in ("letters", "speaker")]
    i = int(np.argmax(same[0] & same[1]))
    return train["spectrum"][i, : int(train["length"][i])]


def distortions(made, held):
    """Mean mel cepstral distortion of spectra to the recordings of the test side, dB."""
    pairs = zip(made, held["spectrum"], held["length"], strict=True)
    return float(np.mean([distortion(one, other[: int(n)]) for one, other, n in pairs]))


def distortion(one, other):
    """Mel cepstral distortion of two log-mel spectra over the cheapest alignment, dB."""
    import librosa
    from scipy.fft import dct

    a, b = (dct(np.log(10) / 2 * s, norm="ortho")[:, 1 : CEPSTRA + 1] for s in (one, other))
    cost, path = librosa.sequence.dtw(a.T, b.T)
    return 10 / np.log(10) * 2**0.5 * cost[-1, -1] / len(path)


# ------------------------------------------------------------------ the model


def network(keras, units, speakers):
    """Letters, speaker and places -> spectrum, and the length as a fraction of FRAMES."""
    layers = keras.layers
    text = layers.Input((LETTERS,), dtype="int32")
    speaker = layers.Input((1,), dtype="int32")
    place = layers.Input((FRAMES, 8))
    x = layers.Embedding(27, 32)(text)
    x = layers.Flatten()(layers.Conv1D(units, 3, padding="same", activation="relu")(x))
    voice = layers.Flatten()(layers.Embedding(speakers, 16)(speaker))
    said = layers.Dense(units, activation="relu")(layers.Concatenate()([x, voice]))
    length = layers.Dense(1, name="length")(layers.Dense(32, activation="relu")(said))
    x = layers.Concatenate()([layers.RepeatVector(FRAMES)(said), place])
    x = layers.Conv1D(units, 5, padding="same", activation="relu")(x)
    for _ in range(2):
        y = layers.Conv1D(units, 5, padding="same", activation="relu")(x)
        x = layers.Add()([x, layers.Dropout(0.1)(y)])
    spectrum = layers.Dense(MELS, name="spectrum")(x)
    return keras.Model([text, speaker, place], [spectrum, length])


def spoken(model, text, speaker):
    """Spectra (length, MELS), each as long as the duration model says."""
    anywhere = places(np.full(len(text), FRAMES))
    _, lengths = model.predict([text, speaker, anywhere], batch_size=100, verbose=0)
    lengths = np.clip(np.round(lengths[:, 0] * FRAMES), 4, FRAMES).astype(int)
    spectra, _ = model.predict([text, speaker, places(lengths)], batch_size=100, verbose=0)
    return [spectrum[:n] for spectrum, n in zip(spectra, lengths, strict=True)]


def closeness(model, data):
    """1 - distortion / silence's."""
    made = spoken(model, data.test["letters"], data.test["speaker"])
    return 1 - distortions(made, data.test) / data.facts["silence"]


def write(model, folder):
    """Every word by every speaker as a sound file, in a folder named after the zeros."""
    import librosa
    import soundfile

    import keras_pruner as kp

    folder = folder / f"{kp.summarize(model).prunable.sparsity:.2f}"
    folder.mkdir(parents=True, exist_ok=True)
    speakers = next(w.shape[0] for w in model.weights if w.shape[-1] == 16)
    for speaker in range(speakers):
        text = np.array([letters(digit) for digit in range(10)], "int32")
        spectra = spoken(model, text, np.full((10, 1), speaker, "int32"))
        for word, frames in zip(WORDS, spectra, strict=True):
            sound = librosa.feature.inverse.mel_to_audio(
                10.0**frames.T, sr=RATE, n_fft=WINDOW, hop_length=HOP
            )
            soundfile.write(folder / f"{word}_{speaker}.wav", sound, RATE)


def main():
    options = OPTIONS.parse_args()
    if not (options.smoke and options.data is None):
        spoken_words.layout(options.data)

    def score(model, data):
        if options.wav:
            write(model, options.wav)
        return closeness(model, data)

    speech = recipe.Recipe(
        name=f"Text to speech, {options.units} units",
        data=lambda _: data(options),
        build=lambda keras, data: network(keras, options.units, data.facts["speakers"]),
        score=score,
        measure="1 - mel cepstral distortion / that of silence",
        loss=["mae", "mae"],
        budget=recipe.budget(options, recipe.Budget(10, 8, 32, 2e-3, 1e-3)),
    )
    recipe.run(options, [speech])


if __name__ == "__main__":
    main()
