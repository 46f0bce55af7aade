"""TFMOT's IMDB example: an embedding and an LSTM that tell good reviews from bad ones.

    python examples/tfmot/imdb_lstm.py --data vaderSentiment-3.3.2.tar.gz

Without --data: IMDB if it can be downloaded, else made-up sentences.
"""

import argparse

import keras
from data import reviews

import keras_pruner.tfmot as tfmot

parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
)
parser.add_argument("--data", metavar="ARCHIVE", help="rated film reviews, see data.py")
archive = parser.parse_args().data
keras.utils.set_random_seed(0)
x_train, y_train, x_test, y_test = reviews(archive)
model = keras.Sequential(
    [
        keras.layers.Input((x_train.shape[1],)),
        keras.layers.Embedding(5000, 32, mask_zero=True),
        keras.layers.LSTM(32),
        keras.layers.Dropout(0.5),
        keras.layers.Dense(1, activation="sigmoid"),
    ]
)
schedule = tfmot.sparsity.keras.PolynomialDecay(
    initial_sparsity=0.3, final_sparsity=0.7, begin_step=10, end_step=80, frequency=10
)
model = tfmot.sparsity.keras.prune_low_magnitude(model, pruning_schedule=schedule)
optimizer = keras.optimizers.Adam(0.005)
model.compile(loss="binary_crossentropy", optimizer=optimizer, metrics=["accuracy"])
model.fit(
    x_train,
    y_train,
    batch_size=64,
    epochs=2,
    callbacks=[tfmot.sparsity.keras.UpdatePruningStep()],
    verbose=2,
)
accuracy = model.evaluate(x_test, y_test, verbose=0)[1]
model = tfmot.sparsity.keras.strip_pruning(model)
for layer in model.layers:
    kernels = [w for w in layer.get_weights() if w.ndim > 1]
    print(layer.name, [round(float((w == 0).mean()), 3) for w in kernels])
    assert all(abs((w == 0).mean() - 0.7) < 0.02 for w in kernels)
print(f"accuracy {accuracy:.4f}")
assert accuracy > 0.6
