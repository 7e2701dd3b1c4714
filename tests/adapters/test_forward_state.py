"""State that a forward pass writes is listed; weights, frozen ones above all, are not."""

import keras
import pytest

from deepseek_hpf.adapters.forward_state import forward_state, metric_state


def names(model):
    return sorted(variable.name for variable in forward_state(model))


class Counter(keras.layers.Layer):
    def build(self, input_shape):
        self.calls = self.add_weight(shape=(), dtype="int32", trainable=False, name="calls")

    def call(self, inputs):
        self.calls.assign(self.calls + 1)
        return inputs


def test_statistics_seeds_and_counters_are_state():
    inner = keras.Sequential([keras.Input((4,)), keras.layers.Dropout(0.5), Counter()])
    model = keras.Sequential(
        [keras.Input((4,)), inner, keras.layers.BatchNormalization(), keras.layers.Dense(2)]
    )
    expected = ["calls", "moving_mean", "moving_variance", "seed_generator_state"]
    assert names(model) == expected
    for variable in forward_state(model):
        assert not any(variable is weight for weight in model.trainable_variables)


def test_frozen_weights_are_not_state():
    backbone = keras.Sequential(
        [keras.Input((4,)), keras.layers.Dense(3), keras.layers.BatchNormalization()]
    )
    frozen_from_the_start = keras.layers.Dense(2, trainable=False)
    model = keras.Sequential(
        [keras.Input((4,)), backbone, frozen_from_the_start, keras.layers.Dense(1)]
    )
    backbone.trainable = False
    assert len(model.non_trainable_variables) == 8
    assert forward_state(model) == []
    backbone.trainable = True
    assert names(model) == ["moving_mean", "moving_variance"]


def test_a_frozen_layer_of_another_kind_may_write():
    class Eager(keras.layers.BatchNormalization):
        pass

    model = keras.Sequential([keras.Input((4,)), Counter(), Eager(), keras.layers.Dropout(0.1)])
    model.trainable = False
    assert names(model) == ["calls", "moving_mean", "moving_variance", "seed_generator_state"]


@pytest.mark.backend("tensorflow", "jax")
def test_states_of_stateful_rnns_are_state_though_keras_lists_them_nowhere():
    model = keras.Sequential(
        [keras.Input((3, 2), batch_size=2), keras.layers.LSTM(4, stateful=True)]
    )
    assert names(model).count("rnn_state") == 2


def test_a_shared_layer_is_listed_once_and_an_unbuilt_one_not_at_all():
    shared = keras.layers.BatchNormalization()
    inputs = keras.Input((4,))
    model = keras.Model(inputs, shared(shared(inputs)))
    assert len(forward_state(model)) == 2
    assert forward_state(keras.Sequential([keras.layers.BatchNormalization()])) == []


def test_metric_state_is_what_the_training_state_holds():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse", metrics=["mae"])
    model.train_on_batch(keras.ops.ones((2, 4)), keras.ops.ones((2, 1)))
    assert [id(v) for v in metric_state(model)] == [id(v) for v in model.metrics_variables]
    assert len(metric_state(model)) == 4
