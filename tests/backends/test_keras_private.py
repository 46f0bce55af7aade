"""Each use of Keras' private API does what this package expects of it."""

import importlib
import threading

import keras
import numpy as np
from models import mlp

from keras_pruner.backends import keras_private


def test_layers_within_a_model_come_after_it_at_any_depth():
    inner = keras.Sequential([keras.Input((8,)), keras.layers.Dense(3)])
    model = keras.Sequential([keras.Input((8,)), inner])
    found = list(keras_private.layers_of(model))
    assert found[0] is model
    assert found.index(inner) < found.index(inner.layers[0])
    assert model not in list(keras_private.layers_of(model, itself=False))


def test_compile_settings_are_new_with_each_call_of_compile():
    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(3)])
    assert keras_private.compile_settings(model) is None
    model.compile("sgd", "mse")
    first = keras_private.compile_settings(model)
    assert first.config["optimizer"] is model.optimizer
    model.compile("sgd", "mse")
    assert keras_private.compile_settings(model) is not first


def test_fit_begins_at_the_epoch_that_a_callback_says(data):
    seen = []

    class Begin(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            keras_private.begin_at_epoch(self.model, 2)

        def on_epoch_begin(self, epoch, logs=None):
            seen.append(epoch)

    mlp().fit(*data, epochs=4, verbose=0, callbacks=[Begin()])
    assert seen == [2, 3]


def test_callbacks_beside_one_are_found_while_its_hook_is_called(data):
    found = []

    class Look(keras.callbacks.Callback):
        def set_model(self, model):
            super().set_model(model)
            found.extend(keras_private.callbacks_beside(self))

    other = keras.callbacks.Callback()
    look = Look()
    mlp().fit(*data, verbose=0, callbacks=[look, other])
    assert other in found
    assert look not in found
    assert keras_private.callbacks_beside(look) == []


def test_a_thread_in_fit_is_told_from_another(data):
    model, found = mlp(), []
    here = threading.current_thread()

    class Look(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            found.append(keras_private.is_in_fit(model, here))

    model.fit(*data, verbose=0, callbacks=[Look()])
    assert found == [True]
    assert not keras_private.is_in_fit(model, here)


def test_an_optimizers_variables_averages_and_calls(data):
    optimizer = keras.optimizers.SGD(use_ema=True, gradient_accumulation_steps=2)
    model = mlp(optimizer)
    model.fit(*data, batch_size=16, verbose=0)
    assert [id(v) for v in keras_private.trained_by(optimizer)] == [
        id(v) for v in model.trainable_variables
    ]
    averages = keras_private.averages_of(optimizer)
    assert [tuple(a.shape) for a in averages] == [tuple(v.shape) for v in model.trainable_variables]
    assert keras_private.averages_of(keras.optimizers.SGD()) is None
    assert int(keras.ops.convert_to_numpy(keras_private.calls_of(optimizer))) == 4
    assert int(optimizer.iterations) == 2
    keys = {keras_private.key_of(optimizer, variable) for variable in model.variables}
    assert len(keys) == len(model.variables)


def test_a_class_named_in_files_is_made_by_its_name_and_plain_keras_finds_its_own():
    class Named(keras.optimizers.Adamax):
        pass

    module, name = "keras.src.optimizers.adamax", "Adamax"
    assert vars(importlib.import_module(module))[name] is keras.optimizers.Adamax
    from keras.src import api_export

    before = api_export.get_symbol_from_name(f"{module}.{name}")
    try:
        keras_private.name_in_files(Named, module, name)
        config = keras.saving.serialize_keras_object(Named())
        assert (config["module"], config["class_name"]) == (module, name)
        assert type(keras.saving.deserialize_keras_object(config)) is Named
        del api_export.REGISTERED_NAMES_TO_OBJS[f"{module}.{name}"]
        plain = keras.saving.deserialize_keras_object(config)
        assert isinstance(plain, keras.optimizers.Adamax)
    finally:
        api_export.REGISTERED_NAMES_TO_OBJS[f"{module}.{name}"] = before
        api_export.REGISTERED_OBJS_TO_NAMES.pop(Named, None)


def test_a_class_saved_as_a_users_own_is_loaded_as_that():
    @keras.saving.register_keras_serializable("tests_of_private")
    class Users(keras.optimizers.SGD):
        pass

    pruned = type("Users", (Users,), {})
    keras_private.save_as(pruned, Users)
    config = keras.saving.serialize_keras_object(pruned())
    assert type(keras.saving.deserialize_keras_object(config)) is Users


def test_the_scope_of_load_model_is_seen_while_it_makes_an_object():
    found = []

    @keras.saving.register_keras_serializable("tests_of_private")
    class Looks:
        def get_config(self):
            return {}

        @classmethod
        def from_config(cls, config):
            found.append(keras_private.loading_scope())
            return cls()

    config = keras.saving.serialize_keras_object(Looks())
    mine = {"mine": np.abs}
    keras.saving.deserialize_keras_object(config, custom_objects=mine, safe_mode=False)
    assert found[0]["custom_objects"]["mine"] is np.abs
    assert found[0]["safe_mode"] is False
    assert keras_private.loading_scope()["safe_mode"] is True
