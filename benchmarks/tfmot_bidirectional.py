"""TFMOT 0.8.1 changes the outputs of a Bidirectional layer before it prunes anything.

This is why `examples/recipes/translation.py` is not compared with TFMOT. Needs an environment:
`pip install "tensorflow-model-optimization==0.8.1" tf-keras`.

    python benchmarks/tfmot_bidirectional.py
"""

import numpy as np
import tensorflow_model_optimization as tfmot
import tf_keras as keras


def network(layer):
    """An embedding that masks padding, the layer, and another LSTM that should see the mask."""
    keras.utils.set_random_seed(0)
    recurrent = keras.layers.LSTM(8, return_sequences=True)
    return keras.Sequential(
        [
            keras.layers.Input((6,)),
            keras.layers.Embedding(20, 8, mask_zero=True),
            layer(recurrent, name="both"),
            keras.layers.LSTM(8),
        ]
    )


def wrapped(layer):
    """The network with that layer wrapped, of which nothing is pruned."""
    schedule = tfmot.sparsity.keras.ConstantSparsity(0.0, begin_step=10**6)

    def wrap(each):
        if each.name != "both":
            return each
        return tfmot.sparsity.keras.prune_low_magnitude(each, schedule)

    return keras.models.clone_model(network(layer), clone_function=wrap)


class Told(keras.layers.Bidirectional):
    """Names its prunable weights itself."""

    def get_prunable_weights(self):
        layers = self.forward_layer, self.backward_layer
        return [w for one in layers for w in (one.cell.kernel, one.cell.recurrent_kernel)]


def main():
    try:
        wrapped(keras.layers.Bidirectional)
        print("Bidirectional: wrapped")
    except ValueError as error:
        print(f"Bidirectional: refused: {str(error)[:90]} ...")
    before, after = network(Told), wrapped(Told)
    for mine, its in zip(before.layers, after.layers, strict=True):
        values = mine.get_weights()
        its.set_weights(values + its.get_weights()[len(values) :])
    rows = np.array([[3, 4, 5, 6, 7, 8], [3, 4, 5, 0, 0, 0]])
    apart = np.abs(before.predict(rows, verbose=0) - after.predict(rows, verbose=0))
    print(f"with get_prunable_weights, a whole row: apart by up to {apart[0].max():.4f}")
    print(f"with get_prunable_weights, a padded row: apart by up to {apart[1].max():.4f}")


if __name__ == "__main__":
    main()
