"""GNMT (Wu et al., 2016), English to German or back, pruned.

The shape is GNMT's: a bidirectional first encoder layer, stacked LSTMs with residual connections
from the third layer on, additive attention from the bottom decoder layer whose context goes into
every layer above it, one vocabulary of word pieces for both languages. One simplification:
the bottom decoder layer does not see the context of the previous step, so that all steps of a
sentence are trained at once.

    KERAS_BACKEND=jax python examples/recipes/translation.py --data wmt16 --layers 4 --width 1024

`--data` is a directory with `train.en`, `train.de` and `newstest2015.en`, `newstest2015.de` (or
the names of `--train` and `--test`): plain text, one sentence a line, the same line in both.
Without it, the pairs are the paragraphs of LibreOffice's help in both languages: 22,806 to train
with and 2,000 on other pages to test, of 4 to 40 words. This script fetches the two Debian packages
with `apt-get download`. Needs sentencepiece and sacrebleu: `pip install "keras-pruner[examples]"`.

Beside BLEU the stored runs have chrF and the cross-entropy of the references per word piece, which
is far less noisy.

The allocation is "global": LAMP removes 93 % of the output layer at 80 % overall, and lost more.
Pruning ends after the first third of the second part of the training, because the remaining weights
learn slowly.

There are no results of TFMOT: TFMOT 0.8.1 refuses the Bidirectional layer. If the layer names its
weights by `get_prunable_weights`, it trains, but a wrapped layer does not pass the padding mask on,
so the following layers read the padding (`benchmarks/tfmot_bidirectional.py` shows both).
"""

import dataclasses
import html.parser
import io
import subprocess
import sys
import zlib
from pathlib import Path
from shutil import which

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from lib import recipe
from lib.datasets import cached

PAD, UNKNOWN, BEGIN, END = range(4)


# ------------------------------------------------------------------ sentences


@dataclasses.dataclass(frozen=True)
class Corpus:
    """Sentence pairs, (source, target), to train with and to test."""

    train: list
    test: list


def files(folder, direction, train, test):
    """Pairs of `train.en`, `train.de` and of the test set, as WMT's tools leave them."""
    source, target = direction.split("-")

    def pairs(name):
        paths = [Path(folder, f"{name}.{language}") for language in (source, target)]
        for path in paths:
            if not path.exists():
                raise FileNotFoundError(
                    f"--data must hold plain text, one sentence a line, under this name. "
                    f"Received: no {path}. --train and --test give other names."
                )
        sides = [path.read_text(encoding="utf-8").splitlines() for path in paths]
        if len(sides[0]) != len(sides[1]):
            raise ValueError(
                f"Both languages must have the same lines. Received: {len(sides[0])} in "
                f"{paths[0]}, {len(sides[1])} in {paths[1]}"
            )
        return [pair for pair in zip(*sides, strict=True) if all(pair)]

    return Corpus(pairs(train), pairs(test))


class Paragraphs(html.parser.HTMLParser):
    """The text of the paragraphs and headings of a page that have an id: id -> text."""

    def __init__(self, page):
        super().__init__()
        self.found, self.current = {}, None
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        if tag in ("p", "h1", "h2", "h3", "h4", "h5", "h6"):
            self.current = dict(attributes).get("id")

    def handle_endtag(self, tag):
        if tag in ("p", "h1", "h2", "h3", "h4", "h5", "h6"):
            self.current = None

    def handle_data(self, data):
        if self.current:
            self.found[self.current] = self.found.get(self.current, "") + data


def prose(cache, packages, direction, tests=2000, words=(4, 40)):
    """Pairs of the paragraphs of a manual in two languages, split by page.

    A paragraph has the same id in both languages, on a page of the same name. Each English text
    counts once, and only if its translation differs. No page is on both sides, and no test
    sentence occurs in training, in either language, so that both directions share one split.
    """
    folders = [next(Path(folder).glob("**/text")) for folder in extracted(cache, packages)]
    pages = {}
    for path in sorted(folders[0].rglob("*.html")):
        other = folders[1] / path.relative_to(folders[0])
        if other.exists():
            sides = [Paragraphs(p.read_text(encoding="utf-8")).found for p in (path, other)]
            pages[path] = list(paired(*sides, words))
    order = np.random.default_rng(0).permutation(len(pages))
    shuffled = [pages[list(pages)[i]] for i in order]
    test, train = {}, []
    for page in shuffled:
        if len(test) < tests:
            test |= dict(page)
        else:
            train += page
    held = set(test) | set(test.values())
    train = {english: german for english, german in train if not {english, german} & held}
    pairs = (list(train.items()), list(test.items())[:tests])
    if direction == "de-en":
        pairs = tuple([pair[::-1] for pair in side] for side in pairs)
    return Corpus(*pairs)


def paired(english, german, words):
    """The paragraphs with the same id, without those that were not translated."""
    for key in english.keys() & german.keys():
        pair = tuple(" ".join(side[key].split()) for side in (english, german))
        if pair[0] != pair[1] and words[0] <= len(pair[0].split()) <= words[1] and pair[1]:
            yield pair


def counting(direction):
    """Made-up pairs, five digits in words, for --smoke without data."""
    english = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    german = ["null", "eins", "zwei", "drei", "vier", "fünf", "sechs", "sieben", "acht", "neun"]
    rows = np.random.default_rng(0).permutation(100000)[:1000]
    sides = english, german
    pairs = [tuple(" ".join(side[int(d)] for d in f"{n:05}") for side in sides) for n in rows]
    if direction == "de-en":
        pairs = [pair[::-1] for pair in pairs]
    return Corpus(pairs[50:], pairs[:50])


def extracted(cache, packages):
    """The folders of the packages, fetched if they are not in the cache."""
    cache = Path(cache)
    if not all((cache / package).exists() for package in packages) and not which("apt-get"):
        raise SystemExit(
            "Without apt-get, translation.py needs sentence pairs: --data. See --help."
        )
    for package in packages:
        folder = cache / package
        if not folder.exists():
            downloads = cache / "downloads"
            downloads.mkdir(parents=True, exist_ok=True)
            subprocess.run(["apt-get", "download", package], cwd=downloads, check=True)
            (archive,) = downloads.glob(f"{package}_*.deb")
            subprocess.run(["dpkg-deb", "--extract", archive, folder], check=True)
        if not any(folder.glob("**/text")):
            raise FileNotFoundError(f"No help pages under {folder}. Delete it to fetch them again.")
    return [cache / package for package in packages]


# ------------------------------------------------------------------ word pieces


def word_pieces(corpus, size):
    """A vocabulary for both languages, made of the training side (Sennrich et al., 2016)."""
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=(sentence for pair in corpus.train for sentence in pair),
        model_writer=model, vocab_size=size, model_type="bpe", character_coverage=0.9995,
        pad_id=PAD, unk_id=UNKNOWN, bos_id=BEGIN, eos_id=END, num_threads=1, minloglevel=2,
    )  # fmt: skip
    return model.getvalue()


def encode(corpus, vocabulary, length, whole):
    """Arrays of the pairs that fit into `length` pieces with END, and of the test side.

    If the test side is to stay whole, its longer sources are cut; else they are left out too.
    References are text.
    """
    import sentencepiece

    pieces = sentencepiece.SentencePieceProcessor(model_proto=vocabulary)
    train, test = (
        [pieces.encode(list(pair)) for pair in side] for side in dataclasses.astuple(corpus)
    )

    def fits(pair):
        return max(map(len, pair)) < length

    train = list(filter(fits, train))
    chosen = [i for i, pair in enumerate(test) if whole or fits(pair)]

    def padded(rows):
        out = np.full((len(rows), length), PAD, "int32")
        for i, row in enumerate(rows):
            row = [*row[: length - 1], END]
            out[i, : len(row)] = row
        return out

    return {
        "source": padded([source for source, _ in train]),
        "target": padded([target for _, target in train]),
        "test": padded([test[i][0] for i in chosen]),
        "test targets": padded([test[i][1] for i in chosen]),
        "references": np.array([corpus.test[i][1] for i in chosen]),
        "vocabulary": np.frombuffer(vocabulary, "uint8"),
    }


@dataclasses.dataclass(frozen=True)
class Batches:
    """Sentence pairs for `Data.train`, of which a row is a whole batch of about equal lengths.

    A batch is as long as its longest sentence, rounded up to a multiple of `step` pieces, so that
    there are few different shapes.
    """

    source: np.ndarray
    target: np.ndarray
    rows: np.ndarray
    step: int = 8

    def __len__(self):
        return len(self.rows)

    def take(self, index):
        """x, the source and the target shifted right, and y, the target."""
        chosen = self.rows[index].reshape(-1)
        source, target = self.source[chosen], self.target[chosen]
        longest = max((side != PAD).sum(1).max() for side in (source, target))
        length = min(source.shape[1], -(-int(longest) // self.step) * self.step)
        source, target = source[:, :length], target[:, :length]
        shifted = np.insert(target[:, :-1], 0, BEGIN, 1)
        shifted[shifted == END] = PAD
        return (source, shifted), target


def batches(source, target, size, seed):
    """`Batches` of `size` pairs; what does not fill the last one is left out."""
    longest = np.maximum((source != PAD).sum(1), (target != PAD).sum(1))
    order = np.random.default_rng(seed).permutation(len(source))
    order = order[np.argsort(longest[order], kind="stable")]
    return Batches(source, target, order[: len(order) // size * size].reshape(-1, size))


def origin(options):
    """Where the sentences come from, in a few words."""
    if options.data:
        name = Path(options.data).resolve().name
    else:
        name = "counting" if options.smoke else options.packages[0].rpartition("-en")[0]
    return f"{options.pairs} pairs of {name}" if options.pairs else name


def data(options, direction, seed):
    """Word pieces of the corpus that the options name."""

    def make():
        if options.data:
            corpus = files(options.data, direction, options.train, options.test)
        elif options.smoke:
            corpus = counting(direction)
        else:
            corpus = prose(options.work / "packages", options.packages, direction)
        if options.smoke:
            corpus = Corpus(corpus.train[:2000], corpus.test[:50])
        vocabulary = word_pieces(corpus, options.words)
        return encode(corpus, vocabulary, options.length, bool(options.data))

    chosen = ("data", "train", "test", "packages", "words", "length", "smoke")
    number = zlib.crc32(repr([getattr(options, name) for name in chosen]).encode())
    kept = cached(options.work / f"translation-{direction}-{number:08x}.npz", make)
    source, target = kept["source"], kept["target"]
    if options.pairs:
        few = np.random.default_rng(0).permutation(len(source))[: options.pairs]
        source, target = source[few], target[few]
    return recipe.Data(
        batches(source, target, options.batch, seed),
        (kept["test"], kept["references"], kept["vocabulary"].tobytes(), kept["test targets"]),
        origin(options),
    )


# ------------------------------------------------------------------ the model


def gnmt(keras, vocabulary, width, layers, dropout):
    """The training network: (source, target so far) -> logits of the next piece.

    `layers` counts the encoder's, and the decoder's; `width` the units of each. Only layers that
    Keras 2 and 3 share, so that either can be `keras`.
    """
    lstm = keras.layers.LSTM
    source = keras.Input((None,), dtype="int32", name="source")
    target = keras.Input((None,), dtype="int32", name="target")

    def embedded(ids, name):
        # Keras' own start, within 0.05, is so near to zero that attention is found late.
        start = keras.initializers.RandomNormal(stddev=0.2)
        x = keras.layers.Embedding(vocabulary, width, start, mask_zero=True, name=name)(ids)
        return keras.layers.Dropout(dropout)(x)

    x = embedded(source, "source_embedding")
    x = keras.layers.Bidirectional(lstm(width, return_sequences=True), name="encoder_1")(x)
    for i in range(2, layers + 1):
        x = keras.layers.Dropout(dropout)(x)
        y = lstm(width, return_sequences=True, name=f"encoder_{i}")(x)
        x = keras.layers.Add()([x, y]) if i > 2 else y
    memory = x
    states = {"return_sequences": True, "return_state": True}
    x, *_ = lstm(width, name="decoder_1", **states)(embedded(target, "target_embedding"))
    query = keras.layers.Dense(width, use_bias=False, name="query")(x)
    keys = keras.layers.Dense(width, use_bias=False, name="keys")(memory)
    context = keras.layers.AdditiveAttention(name="attention")([query, memory, keys])
    for i in range(2, layers + 1):
        y = keras.layers.Dropout(dropout)(keras.layers.Concatenate()([x, context]))
        y, *_ = lstm(width, name=f"decoder_{i}", **states)(y)
        x = keras.layers.Add()([x, y]) if i > 2 else y
    x = keras.layers.Dropout(dropout)(x)
    logits = keras.layers.Dense(vocabulary, name="pieces")(keras.layers.Concatenate()([x, context]))
    return keras.Model([source, target], logits)


def halves(model):
    """The encoder, and one step of the decoder, over the layers of a training network.

    The step takes a piece (n, 1), memory, keys, which places of the source are pieces (n, length)
    and the states; it returns log-probabilities of the next piece and the new states.
    """
    import keras

    layer = {layer.name: layer for layer in model.layers}
    layers = sum(name.startswith("decoder_") for name in layer)
    width = layer["decoder_1"].units
    (source, _) = model.inputs
    memory = layer["keys"].input
    encoder = keras.Model(source, [memory, layer["keys"].output])

    piece = keras.Input((1,), dtype="int32")
    valid = keras.Input((None,), dtype="bool")
    memory = keras.Input((None, memory.shape[-1]))
    keys = keras.Input((None, width))
    states = [keras.Input((width,)) for _ in range(2 * layers)]
    x, *after = layer["decoder_1"](layer["target_embedding"](piece), initial_state=states[:2])
    attention = [layer["query"](x), memory, keys]
    context = layer["attention"](attention, mask=[None, valid])
    for i in range(2, layers + 1):
        y = keras.layers.Concatenate()([x, context])
        y, *new = layer[f"decoder_{i}"](y, initial_state=states[2 * i - 2 : 2 * i])
        after += new
        x = keras.layers.Add()([x, y]) if i > 2 else y
    logits = layer["pieces"](keras.layers.Concatenate()([x, context]))
    likely = keras.layers.Activation("log_softmax")(logits)
    return encoder, keras.Model([piece, memory, keys, valid, *states], [likely, *after])


# ------------------------------------------------------------------ beam search


def translate(model, sources, beams=4, alpha=0.6, batch=250):
    """Rows of word pieces, the best of a beam search (Wu et al., 2016, section 7).

    The score of a hypothesis of n pieces is its log-probability / ((5 + n) / 6) ** alpha.
    """
    encoder, step = halves(model)
    lengths = (sources != PAD).sum(1)
    order = np.argsort(lengths, kind="stable")
    found = [None] * len(sources)
    for begin in range(0, len(sources), batch):
        rows = order[begin : begin + batch]
        # Always the same shape, so that one program serves every batch.
        padded = sources[np.resize(rows, batch)]
        for row, best in zip(rows, search(encoder, step, padded, beams, alpha), strict=False):
            found[row] = best
    return found


def search(encoder, step, sources, beams, alpha):
    """The best hypothesis of each source, END and what follows taken off."""
    n, length = sources.shape
    memory, keys = (np.repeat(a, beams, 0) for a in encoder.predict_on_batch(sources))
    valid = np.repeat(sources != PAD, beams, 0)
    width, states = keys.shape[-1], len(step.inputs) - 4
    states = [np.zeros((n * beams, width), "float32") for _ in range(states)]
    pieces = np.full((n, beams, 1), BEGIN, "int32")
    # All beams start equal: only the first may have children.
    total = np.where(np.arange(beams) == 0, 0.0, -np.inf) * np.ones((n, 1))
    count, ended = np.zeros((n, beams)), np.zeros((n, beams), bool)
    for _ in range(2 * length):
        last = pieces[:, :, -1].reshape(-1, 1)
        likely, *states = step.predict_on_batch([last, memory, keys, valid, *states])
        likely = np.array(likely).reshape(n, beams, -1)
        likely[:, :, [PAD, BEGIN]] = -np.inf
        likely[ended] = -np.inf  # an ended hypothesis has one child, itself
        likely[ended, PAD] = 0.0
        children = total[:, :, None] + likely
        count = count + ~ended
        worth = (children / (((5 + count) / 6) ** alpha)[:, :, None]).reshape(n, -1)
        best = np.argpartition(-worth, beams, 1)[:, :beams]
        best = np.take_along_axis(best, np.argsort(-np.take_along_axis(worth, best, 1), 1), 1)
        parent, piece = np.divmod(best, likely.shape[-1])
        total = np.take_along_axis(children.reshape(n, -1), best, 1)
        count = np.take_along_axis(count, parent, 1)
        ended = np.take_along_axis(ended, parent, 1) | (piece == END)
        pieces = np.take_along_axis(pieces, parent[:, :, None], 1)
        pieces = np.concatenate([pieces, piece[:, :, None].astype("int32")], 2)
        flat = (np.arange(n)[:, None] * beams + parent).reshape(-1)
        states = [np.asarray(state)[flat] for state in states]
        if ended.all():
            break
    return [[int(p) for p in row[1:] if p not in (PAD, END)] for row in pieces[:, 0]]


def scores(model, data):
    """BLEU / 100 of the translated test side, with chrF / 100 and the cross-entropy per piece.

    BLEU and chrF by sacreBLEU (Post, 2018). The cross-entropy is that of the references, in nats,
    piece by piece with the true pieces before it; it is far less noisy.
    """
    import sacrebleu
    import sentencepiece

    sources, references, vocabulary, targets = data.test
    pieces = sentencepiece.SentencePieceProcessor(model_proto=vocabulary)
    found = [pieces.decode(row) for row in translate(model, sources)]
    expected = [references.tolist()]
    return {
        "BLEU": sacrebleu.corpus_bleu(found, expected).score / 100,
        "chrF": sacrebleu.corpus_chrf(found, expected).score / 100,
        "cross-entropy": nats(model, sources, targets),
    }


def nats(model, sources, targets, size=100):
    """The mean cross-entropy of the pieces of the targets, without padding."""
    total = count = 0.0
    for begin in range(0, len(sources), size):
        source, target = sources[begin : begin + size], targets[begin : begin + size]
        shifted = np.insert(target[:, :-1], 0, BEGIN, 1)
        shifted[shifted == END] = PAD
        logits = np.asarray(model.predict_on_batch([source, shifted]), "float64")
        peak = logits.max(-1, keepdims=True)
        likely = logits - peak - np.log(np.exp(logits - peak).sum(-1, keepdims=True))
        chosen = np.take_along_axis(likely, target[..., None], -1)[..., 0]
        total -= chosen[target != PAD].sum()
        count += (target != PAD).sum()
    return float(total / count)


# ------------------------------------------------------------------ the recipe

PUBLISHED = {  # BLEU on newstest2015
    "en-de": {"dense": 26.77, "0.8": 26.86, "0.85": 26.52, "0.9": 26.19},
    "de-en": {"dense": 29.47, "0.8": 29.50, "0.85": 29.24, "0.9": 28.81},
}
PACKAGES = ["libreoffice-help-en-us", "libreoffice-help-de"]
OPTIONS = recipe.parser(__doc__, sparsity=(0.8, 0.85, 0.9))
OPTIONS.set_defaults(start="gradual", allocation="global", prune_until=0.3)
OPTIONS.add_argument("--direction", nargs="+", choices=PUBLISHED, default=["en-de", "de-en"])
OPTIONS.add_argument("--train", default="train", help="name of the training files")
OPTIONS.add_argument("--test", default="newstest2015", help="name of the test files")
OPTIONS.add_argument(
    "--packages", nargs=2, default=PACKAGES, help="Debian's help pages, English and German"
)
OPTIONS.add_argument("--pairs", type=int, help="to train with, drawn from all there are; all")
OPTIONS.add_argument("--words", type=int, default=4000, help="word pieces in the vocabulary")
OPTIONS.add_argument("--length", type=int, default=48, help="maximum word pieces of a sentence")
OPTIONS.add_argument(
    "--layers", type=int, default=2, help="layers of the encoder, and of the decoder"
)
OPTIONS.add_argument("--width", type=int, default=256, help="units of a layer")
OPTIONS.add_argument("--dropout", type=float, default=0.1)
OPTIONS.add_argument("--batch", type=int, default=64, help="sentences")


def cross_entropy(keras):
    """Over the pieces, without padding."""
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=PAD)


def main():
    options = OPTIONS.parse_args()
    if options.smoke and not options.data:
        options.words = 60
    size = f"{options.layers} layers of {options.width}, {options.words} pieces"
    if options.batch != OPTIONS.get_default("batch"):
        size += f", {options.batch} at a time"
    recipes = [
        recipe.Recipe(
            name=f"GNMT {direction}, {origin(options)}, {size}",
            data=lambda seed, direction=direction: data(options, direction, seed),
            build=lambda keras, _: gnmt(
                keras, options.words, options.width, options.layers, options.dropout
            ),
            score=scores,
            measure="BLEU",
            loss=cross_entropy,
            # A row of the data is a batch already.
            budget=recipe.budget(options, recipe.Budget(16, 8, 1, 4e-3, 3e-3)),
            published=PUBLISHED[direction],
            tfmot=False,
        )
        for direction in options.direction
    ]
    recipe.run(options, recipes)


if __name__ == "__main__":
    main()
