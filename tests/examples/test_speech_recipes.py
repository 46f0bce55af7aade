"""Translation, speech recognition and text to speech in examples/: what they compute themselves."""

import itertools
import sys
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.one_backend

EXAMPLES = Path(__file__).parents[2] / "examples"
sys.path[:0] = [str(EXAMPLES), str(EXAMPLES / "recipes")]
import speech_recognition
import text_to_speech
import translation

backend_free = pytest.mark.backend_free
BEGIN, END, PAD = translation.BEGIN, translation.END, translation.PAD


# ---------------------------------------------------------------- translation


@backend_free
def test_files_are_pairs_of_lines(tmp_path):
    for name, text in {
        "train.en": "a\nb\n\n",
        "train.de": "c\nd\n\n",
        "t.en": "e",
        "t.de": "f",
    }.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    corpus = translation.files(tmp_path, "de-en", "train", "t")
    assert corpus.train == [("c", "a"), ("d", "b")]
    assert corpus.test == [("f", "e")]


@backend_free
def test_files_that_do_not_fit_together_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"Received: no .*train\.en"):
        translation.files(tmp_path, "en-de", "train", "test")
    (tmp_path / "train.en").write_text("a\nb\n")
    (tmp_path / "train.de").write_text("a\n")
    with pytest.raises(ValueError, match=r"the same lines\. Received: 2"):
        translation.files(tmp_path, "en-de", "train", "test")


@backend_free
def test_a_batch_has_equal_lengths_and_a_shifted_target():
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 17, 50)
    target = np.where(np.arange(16) < lengths[:, None], 7, PAD).astype("int32")
    target[np.arange(50), lengths - 1] = END
    made = translation.batches(target, target, 8, seed=0)
    assert len(made) == 6
    for i in range(len(made)):
        (source, shifted), y = made.take([i])
        assert source.shape == shifted.shape == y.shape
        assert source.shape[1] == (8 if (y != PAD).sum(1).max() <= 8 else 16)
        assert (shifted[:, 0] == BEGIN).all()
        expected = np.where(y[:, :-1] == END, PAD, y[:, :-1])
        np.testing.assert_array_equal(shifted[:, 1:], expected)


def small_network():
    import keras

    keras.utils.set_random_seed(3)
    model = translation.gnmt(keras, vocabulary=6, width=8, layers=3, dropout=0.0)
    model.set_weights([3 * w for w in model.get_weights()])  # far from a coin's toss
    return model


def worth(model, source, pieces, alpha=0.6):
    """A hypothesis' log-probability by the training network, over its length penalty."""
    shifted = np.array([[BEGIN, *pieces[:-1]]], "int32")
    logits = np.asarray(model.predict([source, shifted], verbose=0), "float64")[0]
    likely = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    return likely[np.arange(len(pieces)), pieces].sum() / ((5 + len(pieces)) / 6) ** alpha


def test_a_wide_beam_finds_the_best_of_all_hypotheses():
    model = small_network()
    source = np.array([[4, 5, END]], "int32")
    words = [translation.UNKNOWN, 4, 5]
    # Six steps at most, for three source pieces; only short hypotheses are listed, and won by.
    every = [[*body, END] for n in range(4) for body in itertools.product(words, repeat=n)]
    best = max(every, key=lambda pieces: worth(model, source, pieces))
    (found,) = translation.translate(model, source, beams=150, batch=1)
    assert worth(model, source, [*found, END]) >= worth(model, source, best) - 1e-4
    assert len(found) > 3 or [*found, END] == best


def page(folder, name, **paragraphs):
    path = folder / "usr/help/text/guide" / f"{name}.html"
    path.parent.mkdir(parents=True, exist_ok=True)
    tags = "".join(f'<p id="{key}" class="x">{text}</p>' for key, text in paragraphs.items())
    path.write_text(f"<html><h1 id='t'>A <b>title</b> of\n{name} here</h1><p>none</p>{tags}</html>")


@pytest.mark.backend_free
def test_the_paragraphs_of_a_manual_are_paired_by_id_and_split_by_page(tmp_path):
    for number in range(6):
        text = f"the page {number} says &amp; means this"
        page(tmp_path / "en", number, a=text, b="the same in both", c="too short", d="x " * 50)
        page(tmp_path / "de", number, a=f"die Seite {number} sagt das", b="the same in both", c="k")
    page(tmp_path / "en", "alone", a="not there in the other language")
    corpus = translation.prose(tmp_path, ["en", "de"], "en-de", tests=2)
    back = translation.prose(tmp_path, ["en", "de"], "de-en", tests=2)
    assert (len(corpus.train), len(corpus.test)) == (4, 2)
    for english, german in corpus.train + corpus.test:
        assert english == f"the page {german.split()[2]} says & means this"
    assert [pair[::-1] for pair in corpus.test] == back.test


def test_cross_entropy_is_that_of_the_pieces():
    import keras

    model = translation.gnmt(keras, vocabulary=6, width=8, layers=2, dropout=0.0)
    source = np.array([[4, 5, END, PAD], [4, END, PAD, PAD]], "int32")
    target = np.array([[5, 4, END, PAD], [5, END, PAD, PAD]], "int32")
    shifted = np.array([[BEGIN, 5, 4, PAD], [BEGIN, 5, PAD, PAD]], "int32")
    likely = keras.ops.softmax(model([source, shifted]))
    likely = keras.ops.convert_to_numpy(likely)
    pairs = [(0, 0, 5), (0, 1, 4), (0, 2, END), (1, 0, 5), (1, 1, END)]
    expected = -np.mean([np.log(likely[at]) for at in pairs])
    assert translation.nats(model, source, target) == pytest.approx(expected, rel=1e-5)


def test_padding_and_company_do_not_change_a_translation():
    model = small_network()
    sources = np.array([[4, END, PAD, PAD], [5, 4, 5, END], [5, END, PAD, PAD]], "int32")
    together = translation.translate(model, sources, batch=4)
    alone = [translation.translate(model, row[row != PAD][None], batch=1) for row in sources]
    # Shorter sources may run for fewer steps alone: what both wrote is the same.
    for found, (other,) in zip(together, alone, strict=True):
        n = min(len(found), len(other))
        assert found[:n] == other[:n]


# ---------------------------------------------------------------- speech recognition


@backend_free
@pytest.mark.parametrize(
    ("found", "said", "edits"),
    [
        ([], [1, 2], 2),
        ([1, 2], [1, 2], 0),
        ([2, 1], [1, 2], 2),
        ([1, 3, 2], [1, 2], 1),
        ([4, 5, 6], [4, 6, 6, 6], 2),
    ],
)
def test_edits_by_hand(found, said, edits):
    assert speech_recognition.edits(np.array(found), np.array(said)) == edits


def test_repeated_words_are_told_apart_by_the_nothing_between_them():
    class Model:
        def predict(self, x, **_):
            return x

    path = np.array([[2, 2, 0, 2, 0, 0, 7, 7]])  # says 2, 2, 7: as digits 1, 1, 6
    logits = 10.0 * np.eye(11, dtype="float32")[path]

    class Data:
        test = logits, np.array([[2, 2, 7, 0, 0, 0]])

    assert speech_recognition.words_right(Model(), Data, beams=1) == 1.0
    Data.test = logits, np.array([[2, 7, 0, 0, 0, 0]])
    assert speech_recognition.words_right(Model(), Data, beams=1) == 0.5


# ---------------------------------------------------------------- text to speech


@backend_free
def test_letters_are_numbered_from_one_and_filled_up():
    assert text_to_speech.letters(1) == [15, 14, 5, 0, 0]


@backend_free
def test_distortion_ignores_loudness_and_time():
    pytest.importorskip("librosa")
    one = np.random.default_rng(0).normal(size=(12, text_to_speech.MELS))
    assert text_to_speech.distortion(one, one) == pytest.approx(0.0, abs=1e-6)
    slower = np.repeat(one, 2, 0) + 0.7
    assert text_to_speech.distortion(one, slower) == pytest.approx(0.0, abs=1e-6)
    # One cepstrum that is off by c in every frame: 10 / ln 10 * sqrt(2) * |c|.
    k = np.arange(text_to_speech.MELS)
    wave = np.cos(np.pi * 3 * (k + 0.5) / text_to_speech.MELS) * (2 / text_to_speech.MELS) ** 0.5
    constant = np.zeros((5, text_to_speech.MELS))
    moved = constant + 2 / np.log(10) * 0.25 * wave
    assert text_to_speech.distortion(constant, moved) == pytest.approx(6.1419 * 0.25, rel=1e-4)


@backend_free
def test_places_end_where_the_utterance_does():
    found = text_to_speech.places([10, 64])
    assert found.shape == (2, text_to_speech.FRAMES, 8)
    assert found[0, 10, -1] == 0
    assert (found[0, 11:, -1] > 0).all()
    assert (found[0, :10, -1] < 0).all()
