"""Real data for the examples: the usual source if it can be reached, else what is at hand."""

import importlib.resources
import re
import tarfile
from pathlib import Path

import keras
import numpy as np


def mnist(samples=4000):
    """Digits: `keras.datasets.mnist`, or the 10,000 of MNIST within keras_pruner."""
    try:
        (x, y), (x_test, y_test) = keras.datasets.mnist.load_data()
        print("MNIST, all of it")
    except Exception as error:  # no network
        print(f"The 10,000 digits within keras_pruner, for MNIST cannot be had: {error}"[:120])
        file = importlib.resources.files("keras_pruner") / "data" / "mnist_10k.npz"
        with file.open("rb") as stream, np.load(stream) as digits:
            x, y = digits["x"], digits["y"]
        x, y, x_test, y_test = x[:8000], y[:8000], x[8000:], y[8000:]
    scale = np.float32(255)
    return x[:samples] / scale, y[:samples], x_test[:2000] / scale, y_test[:2000]


def reviews(archive=None, words=5000, length=20, samples=3200):
    """Film reviews as numbers of words: `keras.datasets.imdb`, or the archive of vaderSentiment.

    The archive is its source distribution, with 10,605 rated snippets (Hutto & Gilbert 2014),
    MIT: `pip download --no-binary :all: --no-deps vaderSentiment==3.3.2`.
    """
    if archive is None:
        try:
            (x, y), (x_test, y_test) = keras.datasets.imdb.load_data(num_words=words)
            print("IMDB")
            cut = [keras.utils.pad_sequences(part, maxlen=length) for part in (x, x_test)]
            return cut[0][:samples], y[:samples], cut[1][:samples], y_test[:samples]
        except Exception as error:  # no network
            print(f"IMDB cannot be had: {error}"[:120])
            print("Sentences made of a few good and bad words instead: pass --data for real ones")
            texts, y = _made_up(samples or 3200)
    else:
        texts, y = _snippets(Path(archive))
    known: dict[str, int] = {}
    for text in texts:
        for word in text:
            known[word] = known.get(word, 0) + 1
    common = sorted(known, key=lambda word: (-known[word], word))[: words - 2]
    number = {word: i + 2 for i, word in enumerate(common)}
    x = keras.utils.pad_sequences([[number.get(w, 1) for w in t] for t in texts], maxlen=length)
    order = np.random.default_rng(0).permutation(len(x))
    x, y, half = x[order], np.array(y)[order], len(x) * 4 // 5
    return x[:half][:samples], y[:half][:samples], x[half:], y[half:]


def _snippets(archive):
    """Words and sentiment of each snippet, without the undecided ones."""
    name = "additional_resources/hutto_ICWSM_2014.tar.gz"
    inside = "movieReviewSnippets_GroundTruth.txt"
    with tarfile.open(archive) as outer:
        member = next(m for m in outer.getmembers() if m.name.endswith(name))
        with tarfile.open(fileobj=outer.extractfile(member)) as inner:
            found = next(m for m in inner.getmembers() if m.name.endswith(inside))
            lines = inner.extractfile(found).read().decode("latin-1").splitlines()
    rated = [line.split("\t") for line in lines if line.count("\t") >= 2]
    clear = [(text, float(rating)) for _, rating, text in rated if abs(float(rating)) >= 0.5]
    return [re.findall(r"[a-z']+", text.lower()) for text, _ in clear], [r > 0 for _, r in clear]


def _made_up(samples):
    rng = np.random.default_rng(0)
    moods = [["dull", "bad", "boring", "flat"], ["good", "fine", "bright", "moving"]]
    plain = [f"word{i}" for i in range(200)]
    y = rng.integers(0, 2, samples)
    texts = [[*rng.choice(plain, 12), *rng.choice(moods[mood], 2)] for mood in y]
    return [list(rng.permutation(text)) for text in texts], y
