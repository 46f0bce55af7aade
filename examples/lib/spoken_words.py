"""Recordings of words as features: spoken digits or Google's Speech Commands, from a directory."""

import re
import zlib
from pathlib import Path

import numpy as np

from lib.datasets import cached, classes

KEYWORDS = ("yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go")
DIGIT = re.compile(r"(\d)_([a-z]+)_(\d+)\.wav")
FRAMES, COEFFICIENTS = 49, 10


def layout(path):
    """The layout of the directory: "digits" or "commands"."""
    if path is None:
        raise SystemExit(
            "--data is missing: the Free Spoken Digit Dataset (a directory with 0_george_0.wav and "
            "so on, or an .npz of it) or Speech Commands (a directory with a folder for each "
            "word). See --help."
        )
    path = Path(path)
    if path.suffix == ".npz" or any(DIGIT.fullmatch(p.name) for p in _digit_files(path)):
        return "digits"
    if (path / "testing_list.txt").exists():
        return "commands"
    raise SystemExit(
        f"Neither of the layouts that --help describes is found in --data {path}: no file like "
        "0_george_0.wav, no testing_list.txt."
    )


def digits(path, work, split, rows=None, seed=0):
    """Spoken digits.

    `split` is "official" (test with recordings below 5), the speaker to test with, or "each": the
    speakers in turn, a seed for each.
    """
    found = cached(work / f"digits-{stamp(path)}.npz", lambda: _digits(path))
    speakers = sorted(set(found["speaker"].tolist()))
    speaker = speakers[seed % len(speakers)] if split == "each" else split
    test = found["index"] < 5 if split == "official" else found["speaker"] == speaker
    if not test.any():
        known = ", ".join(speakers)
        raise SystemExit(
            f'--split must be "official", "each" or one of {known}. Received: {split}.'
        )
    return _normed(found["x"], found["y"], test, f"FSDD, {split}", rows)


def recordings(path):
    """Spoken digits: sounds at 8 kHz without trailing zeros; y, speaker and index."""
    path = Path(path)
    if path.suffix == ".npz":
        with np.load(path) as kept:
            found = {name: kept[name] for name in ("y", "speaker", "index")}
            sounds = kept["x"].astype("float32") / 2**15
        return {"sounds": [np.trim_zeros(sound, "b") for sound in sounds], **found}
    import librosa

    files = [p for p in _digit_files(path) if DIGIT.fullmatch(p.name)]
    said = [DIGIT.fullmatch(p.name).groups() for p in files]
    return {
        "sounds": [librosa.load(file, sr=8000)[0] for file in files],
        "y": np.array([int(digit) for digit, _, _ in said]),
        "speaker": np.array([speaker for _, speaker, _ in said]),
        "index": np.array([int(index) for _, _, index in said]),
    }


def commands(path, work, rows=None):
    """Speech Commands as in "Hello Edge": ten words, unknown words and silence."""
    found = cached(work / f"commands-{stamp(path)}.npz", lambda: _commands(Path(path)))
    return _normed(found["x"], found["y"], found["test"], "Speech Commands", rows)


def tones(rows=200):
    """Features of synthetic tones, for --smoke without recordings."""
    found = made_up(rows)
    x = np.stack([mfcc(sound, 8000) for sound in found["sounds"]])
    return _normed(x, found["y"], found["index"] < 5, "made-up tones")


def made_up(rows=200):
    """One noisy tone per digit, in the form of `recordings`, for --smoke without recordings."""
    rng = np.random.default_rng(0)
    y = np.arange(rows) % 10
    time = np.arange(4000) / 8000
    pitch = 300 + 200 * y + rng.normal(0, 20, rows)
    sounds = np.sin(2 * np.pi * pitch[:, None] * time) + rng.normal(0, 0.3, (rows, 4000))
    speaker, index = np.full(rows, "nobody"), np.arange(rows) // 10
    return {"sounds": list(sounds.astype("float32")), "y": y, "speaker": speaker, "index": index}


def mfcc(sound, rate):
    """The features of "Hello Edge" for one second: 49 frames of 40 ms with 10 coefficients."""
    import librosa

    second = np.zeros(rate, "float32")
    second[: min(rate, len(sound))] = sound[:rate]
    features = librosa.feature.mfcc(
        y=second, sr=rate, n_mfcc=COEFFICIENTS, n_mels=40, n_fft=rate // 25,
        hop_length=rate // 50, center=False,
    )  # fmt: skip
    return features.T.astype("float32")


def _normed(x, y, test, source, rows=None):
    """Data with each coefficient scaled by its statistics in the training part."""
    mean, scale = x[~test].mean((0, 1)), x[~test].std((0, 1))
    x = ((x - mean) / scale)[..., None].astype("float32")
    parts = {"x": x[~test], "y": y[~test], "x_test": x[test], "y_test": y[test]}
    return classes(parts, source, rows)


def stamp(path):
    """A short name for a path, so that two copies of the data do not share features."""
    return f"{zlib.crc32(str(Path(path).resolve()).encode()):08x}"


def _digit_files(path):
    """The files of the digits, in the directory itself or in its folder "recordings"."""
    folder = path / "recordings"
    return sorted((folder if folder.is_dir() else path).glob("*.wav"))


def _digits(path):
    """Features, digit, speaker and number of each recording."""
    found = recordings(path)
    sounds = found.pop("sounds")
    return {"x": np.stack([mfcc(sound, 8000) for sound in sounds]), **found}


def _commands(path):
    """Features and classes; 10 % of the recordings are unknown words, 10 % silence."""
    tests = set((path / "testing_list.txt").read_text().split())
    rng = np.random.default_rng(0)
    files = sorted(p for p in path.glob("*/*.wav") if not p.parent.name.startswith("_"))
    known = [p for p in files if p.parent.name in KEYWORDS]
    other = [p for p in files if p.parent.name not in KEYWORDS]
    part = len(known) // len(KEYWORDS)
    chosen = [other[i] for i in rng.permutation(len(other))[:part]]
    number = {word: i for i, word in enumerate(KEYWORDS)}
    features = [mfcc(*_wav(file)) for file in known + chosen]
    y = [number.get(file.parent.name, len(KEYWORDS)) for file in known + chosen]
    test = [file.relative_to(path).as_posix() in tests for file in known + chosen]
    noises = [_wav(file) for file in sorted((path / "_background_noise_").glob("*.wav"))]
    for i in range(part if noises else 0):
        sound, rate = noises[i % len(noises)]
        begin = rng.integers(0, max(1, len(sound) - rate))
        features.append(mfcc(sound[begin:] * rng.uniform(0, 1), rate))
        y.append(len(KEYWORDS) + 1)
        test.append(i % 10 == 0)
    return {"x": np.stack(features), "y": np.array(y), "test": np.array(test)}


def _wav(path):
    import soundfile

    return soundfile.read(path, dtype="float32")
