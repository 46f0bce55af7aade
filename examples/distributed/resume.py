"""Any backend: a training that goes on after a kill. Kill it, and run the same line again.

python examples/distributed/resume.py backups
"""

import sys

import keras
import numpy as np

import keras_pruner as kp


class Digits(keras.utils.PyDataset):
    """Batches in an order that depends on the epoch alone."""

    def __init__(self, epoch):
        super().__init__()
        self.epoch = epoch
        random = np.random.default_rng(0)
        self.x, self.y = random.random((512, 20), "float32"), random.integers(0, 3, 512)

    def __len__(self):
        return 8

    def on_epoch_end(self):
        self.epoch += 1

    def __getitem__(self, i):
        order = np.random.default_rng(self.epoch).permutation(512)[64 * i : 64 * (i + 1)]
        return self.x[order], self.y[order]


keras.utils.set_random_seed(0)
model = keras.Sequential(
    [
        keras.Input((20,)),
        keras.layers.Dense(64, "relu"),
        keras.layers.Dropout(0.2),
        keras.layers.Dense(3, "softmax"),
    ]
)
model.compile("adam", loss="sparse_categorical_crossentropy")
backup = kp.callbacks.AtomicBackup(sys.argv[1])
print(f"{backup.epoch} epochs are done")
model.fit(Digits(backup.epoch), epochs=4, callbacks=[kp.GradualPruning(0.8), backup])
print(kp.summarize(model))
model.save("resumed.keras")
