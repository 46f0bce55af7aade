import json
import re

import keras
import numpy as np
import pytest

import keras_pruner as kp
from keras_pruner.reporting.html import curves
from keras_pruner.reporting.sparsity import SparsityReport, Weight


def half_zero(name="net", layer="dense"):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, name=layer)], name=name)
    model.layers[0].set_weights([np.array([[1, 0], [0, 2], [0, 0], [3, 4.0]]), np.ones(2)])
    return model


def test_zeros_are_counted_weight_by_weight_and_in_total():
    report = kp.summarize(half_zero())
    kernel, bias = report.weights
    assert kernel == Weight("dense/kernel", (4, 2), 4, True)
    assert (kernel.size, kernel.sparsity) == (8, 0.5)
    assert bias == Weight("dense/bias", (2,), 0, False)
    assert (report.prunable.size, report.prunable.zeros) == (8, 4)
    assert (report.all.size, report.all.zeros, report.all.sparsity) == (10, 4, 0.4)


def test_shared_and_nested_weights_are_counted_once():
    shared = keras.layers.Dense(3, name="shared")
    inner = keras.Sequential([keras.Input((3,)), shared], name="inner")
    x = keras.Input((3,))
    model = keras.Model(x, shared(inner(x)))
    assert kp.summarize(model).all.size == model.count_params() == 12


def test_subclassed_models_and_frozen_weights_are_counted():
    class Net(keras.Model):
        def __init__(self):
            super().__init__()
            self.blocks = [keras.layers.Dense(4), keras.layers.BatchNormalization()]

        def call(self, x):
            for block in self.blocks:
                x = block(x)
            return x

    model = Net()
    model(np.ones((1, 3), "float32"))
    model.trainable = False
    report = kp.summarize(model)
    assert report.all.size == model.count_params()
    assert report.prunable.size == 12


def test_a_model_without_prunable_weights_has_a_report():
    model = keras.Sequential([keras.Input((4,)), keras.layers.LayerNormalization()])
    report = kp.summarize(model)
    assert report.prunable.size == 0
    assert report.prunable.sparsity == 0.0
    assert "Sparsity by layer" not in report.to_html()


def test_low_precision_weights_are_counted():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(4, dtype="bfloat16")])
    kp.prune(model, 0.5)
    assert kp.summarize(model).prunable.zeros == 8


def test_an_unbuilt_model_is_refused():
    with pytest.raises(ValueError, match=r"has no weights yet\. Build it"):
        kp.summarize(keras.Sequential([keras.layers.Dense(2)]))


def test_it_prints_as_a_table():
    text = str(kp.summarize(half_zero()))
    assert re.search(r"dense/kernel +\(4, 2\) +8 +4 +0\.5000", text)
    assert re.search(r"all weights +10 +4 +0\.4000", text)


def test_json_is_the_same_as_the_dict():
    report = kp.summarize(half_zero())
    data = json.loads(report.to_json())
    assert data == report.as_dict()
    assert data["all"] == {"size": 10, "zeros": 4, "sparsity": 0.4}
    assert data["weights"][0]["path"] == "dense/kernel"


def test_the_page_stands_alone_and_escapes_names():
    evil = "<script>$x$ & --><b>"
    rows = (Weight(f"{evil}/kernel", (2, 2), 2, True), Weight("other/kernel", (2, 2), 4, True))
    history = {"sparsity": [0.0, 0.5], "val_accuracy": [0.9, 0.8], "loss": [1.0, 0.5]}
    text = SparsityReport(evil, rows).to_html(history=history)
    assert "<script" not in text
    assert "--><b>" not in text
    assert "&lt;script&gt;$x$ &amp; --&gt;&lt;b&gt;/<wbr>kernel" in text
    assert not re.search(r"""(src|href)\s*=\s*["'](?!#)|@import|url\((?!#)""", text)
    assert text.count("<svg") == 1
    assert text.count('class="bar"') == 2 + 2  # the totals have none
    assert "accuracy" in text
    assert "prefers-color-scheme: dark" in text


def test_curves_of_fewer_values_are_not_drawn_at_the_wrong_epochs():
    """As `fit(validation_freq=3)` leaves them."""
    history = {"sparsity": [0.1, 0.2, 0.3, 0.4, 0.5, 0.5], "val_accuracy": [0.25, 0.5]}
    text = kp.summarize(half_zero()).to_html(history=history)
    assert "accuracy, 2 values over 6 epochs" in text
    assert "values over" not in kp.summarize(half_zero()).to_html(
        history={name: values[:2] for name, values in history.items()}
    )


def test_metrics_of_many_numbers_are_plotted_one_by_one():
    history = {"val_f1": [np.array([0.25, 0.5]), np.array([0.5, 0.75])], "sparsity": [0.5, 0.5]}
    assert curves(history) == {"sparsity": [0.5, 0.5], "f1[0]": [0.25, 0.5], "f1[1]": [0.5, 0.75]}
    assert "f1[1]" in kp.summarize(half_zero()).to_html(history=history)


def test_the_sparsity_of_nothing_is_no_number():
    model = keras.Sequential([keras.Input((8,)), keras.layers.LayerNormalization()])
    total = next(line for line in str(kp.summarize(model)).splitlines() if "  prunable" in line)
    assert total.split()[-3:] == ["0", "0", "-"]


def test_metrics_of_training_are_plotted_where_there_was_no_validation():
    text = kp.summarize(half_zero()).to_html(history={"sparsity": [0.5], "accuracy": [0.25]})
    assert "accuracy" in text
