"""Models with one planted conflict each, and clean ones: what the profiler is judged by.

A planted model says the kind and the layer that have to be found, and how the conflict is removed:
by the rule that the profiler prints, or, where no rule can help, by building it as it advises.
"""

from collections.abc import Callable
from dataclasses import dataclass

import keras
import numpy as np

L = keras.layers
ALL = ("tensorflow", "jax", "torch")


@dataclass(frozen=True)
class Planted:
    """A model with a conflict.

    Args:
        name: What is planted.
        build: Makes the compiled model and its batch; with `fixed=True`, as the advice says.
        kind: Kind of the conflict.
        path: Layer at fault.
        by_rule: Whether a rule removes it.
        backends: Where the conflict exists: what a framework computes in float32 by itself is none.
    """

    name: str
    build: Callable[[bool], tuple[keras.Model, tuple]]
    kind: str
    path: str
    by_rule: bool = True
    backends: tuple[str, ...] = ALL


PLANTED: list[Planted] = []
CLEAN: dict[str, Callable[[], tuple[keras.Model, tuple]]] = {}


def planted(kind, path, by_rule=True, backends=ALL):
    def add(build):
        name = build.__name__.strip("_")
        PLANTED.append(Planted(name, build, kind, path, by_rule, backends))
        return build

    return add


def clean(build):
    CLEAN[build.__name__.strip("_")] = build
    return build


def compiled(inputs, outputs, optimizer="sgd", loss="mse"):
    model = keras.Model(inputs, outputs, name="corpus")
    model.compile(optimizer, loss)
    return model


def scaled():
    return keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(), initial_scale=8.0)


def rows(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype("float32")


def chain(*policies, layer=None, names=None):
    """Dense layers in a row under these policies, with a float32 head."""
    tensor = inputs = keras.Input((6,))
    for index, policy in enumerate(policies):
        name = f"d{index}"
        made = layer(index, policy) if layer else None
        tensor = (made or L.Dense(6, dtype=policy, name=name))(tensor)
    outputs = L.Dense(2, dtype="float32", name="head")(tensor)
    low16 = any("float16" in p and "bfloat16" not in p for p in policies)
    model = compiled(inputs, outputs, scaled() if low16 else "sgd")
    return model, (rows(4, 6), rows(4, 2))


def second(cls, *args):
    """Makes the second layer of a chain."""
    return lambda index, policy: cls(*args, dtype=policy, name="mid") if index == 1 else None


BF, FP, F32 = "mixed_bfloat16", "mixed_float16", "float32"


@planted("float32_island", "d1")
def float32_dense_between_bfloat16(fixed):
    return chain(BF, F32, BF)


@planted("float32_island", "d2")
def float32_island_of_two(fixed):
    return chain(BF, F32, F32, BF)


@planted("float32_island", "d1")
def float32_dense_between_float16(fixed):
    return chain(FP, F32, FP)


@planted("float32_island", "mid")
def float32_activation_between_low(fixed):
    return chain(
        BF,
        F32,
        BF,
        layer=lambda i, p: L.Activation("relu", dtype=p, name="mid") if i == 1 else None,
    )


@planted("low_island", "d1")
def bfloat16_dense_between_float32(fixed):
    return chain(F32, BF, F32, F32)


@planted("low_island", "d1")
def float16_dense_between_float32(fixed):
    return chain(F32, FP, F32, F32)


@planted("cast_round_trip", "mid")
def low_activation_between_float32(fixed):
    return chain(
        F32,
        BF,
        F32,
        F32,
        layer=lambda i, p: L.Activation("relu", dtype=p, name="mid") if i == 1 else None,
    )


@planted("cast_round_trip", "mid")
def low_dropout_between_float32(fixed):
    return chain(
        F32,
        BF,
        F32,
        F32,
        layer=lambda i, p: L.Dropout(0.5, dtype=p, name="mid") if i == 1 else None,
    )


@planted("cast_round_trip", "mid")
def low_reshape_between_float32(fixed):
    return chain(
        F32,
        BF,
        F32,
        F32,
        layer=lambda i, p: L.Reshape((6,), dtype=p, name="mid") if i == 1 else None,
    )


@planted("low_to_low", "d1")
def float16_into_bfloat16(fixed):
    return chain(FP, BF)


@planted("low_to_low", "d1")
def float16_into_a_long_bfloat16_chain(fixed):
    return chain(FP, BF, BF, BF, BF)


@planted("low_to_low", "d1")
def bfloat16_into_float16(fixed):
    return chain(BF, FP)


@planted("unlike_inputs", "add")
def add_of_float32_and_bfloat16(fixed):
    inputs = keras.Input((6,))
    low, wide = L.Dense(6, dtype=BF, name="low")(inputs), L.Dense(6, dtype=F32, name="wide")(inputs)
    added = L.Add(dtype=BF, name="add")([low, wide])
    return compiled(inputs, L.Dense(2, dtype=F32)(added)), (rows(4, 6), rows(4, 2))


@planted("unlike_inputs", "join")
def concatenation_of_unlike_inputs(fixed):
    inputs = keras.Input((6,))
    low, wide = L.Dense(6, dtype=BF, name="low")(inputs), L.Dense(6, dtype=F32, name="wide")(inputs)
    joined = L.Concatenate(dtype=BF, name="join")([low, wide])
    return compiled(inputs, L.Dense(2, dtype=F32)(joined)), (rows(4, 6), rows(4, 2))


@planted("unlike_inputs", "add")
def add_behind_a_float32_chain(fixed):
    inputs = keras.Input((6,))
    low, wide = L.Dense(6, dtype=BF, name="low")(inputs), inputs
    for index in range(3):
        wide = L.Dense(6, dtype=F32, name=f"wide{index}")(wide)
    added = L.Add(dtype=BF, name="add")([low, wide])
    return compiled(inputs, L.Dense(2, dtype=F32)(added)), (rows(4, 6), rows(4, 2))


@planted("promotion", "sum")
def operation_on_unlike_inputs(fixed):
    inputs = keras.Input((6,))
    low, wide = L.Dense(6, dtype=BF, name="low")(inputs), L.Dense(6, dtype=F32, name="wide")(inputs)
    added = keras.src.ops.numpy.Add(name="sum")(low, wide)
    return compiled(inputs, L.Dense(2, dtype=F32)(added)), (rows(4, 6), rows(4, 2))


class ReturnsFloat32(L.Layer):
    def call(self, x):
        return keras.ops.cast(keras.ops.tanh(x), "float32")


class ReturnsBfloat16(L.Layer):
    def call(self, x):
        return keras.ops.cast(keras.ops.tanh(x), "bfloat16")


class MultipliesInFloat32(L.Layer):
    def build(self, shape):
        self.kernel = self.add_weight(shape=(shape[-1], 4))

    def call(self, x):
        product = keras.ops.matmul(
            keras.ops.cast(x, "float32"), keras.ops.cast(self.kernel, "float32")
        )
        return keras.ops.cast(product, self.compute_dtype)


def around(layer, policy):
    inputs = keras.Input((6,))
    tensor = layer(L.Dense(6, dtype=policy, name="before")(inputs))
    low = policy == FP
    model = compiled(inputs, L.Dense(2, dtype=F32)(tensor), scaled() if low else "sgd")
    return model, (rows(4, 6), rows(4, 2))


@planted("ignores_policy", "odd")
def layer_returns_float32(fixed):
    return around(ReturnsFloat32(dtype=BF, name="odd"), BF)


@planted("ignores_policy", "odd")
def layer_returns_bfloat16(fixed):
    return around(ReturnsBfloat16(dtype=F32, name="odd"), F32)


@planted("ignores_policy", "odd")
def layer_multiplies_in_float32(fixed):
    return around(MultipliesInFloat32(dtype=BF, name="odd"), BF)


@planted("low_softmax", "attention/softmax")
def attention_with_dropout(fixed):
    inputs = keras.Input((5, 8))
    attention = L.MultiHeadAttention(2, 4, dropout=0.1, dtype=BF, name="attention")
    tensor = attention(L.Dense(8, dtype=BF)(inputs), L.Dense(8, dtype=BF)(inputs))
    tensor = L.GlobalAveragePooling1D(dtype=BF)(tensor)
    return compiled(inputs, L.Dense(2, dtype=F32)(tensor)), (rows(4, 5, 8), rows(4, 2))


@planted("low_softmax", "softmax")
def softmax_layer(fixed):
    return around(L.Softmax(dtype=BF, name="softmax"), BF)


@planted("low_softmax", "gate")
def softmax_activation(fixed):
    return around(L.Dense(4, activation="softmax", dtype=BF, name="gate"), BF)


@planted("low_softmax", "attention")
def plain_attention(fixed):
    inputs = keras.Input((5, 8))
    tensor = L.Dense(8, dtype=BF)(inputs)
    tensor = L.Attention(dtype=BF, name="attention")([tensor, tensor])
    tensor = L.GlobalAveragePooling1D(dtype=BF)(tensor)
    return compiled(inputs, L.Dense(2, dtype=F32)(tensor)), (rows(4, 5, 8), rows(4, 2))


@planted("low_softmax", "inner/softmax")
def softmax_in_a_nested_model(fixed):
    inner = keras.Sequential(
        [keras.Input((6,)), L.Dense(6, dtype=BF), L.Softmax(dtype=BF, name="softmax")], name="inner"
    )
    return around(inner, BF)


class SumsLongAxis(L.Layer):
    def call(self, x):
        return x + keras.ops.sum(keras.ops.tile(x, (1, 400)), axis=-1, keepdims=True)


@planted("low_reduction", "sums", backends=("tensorflow", "torch"))
def sum_over_a_long_axis(fixed):
    return around(SumsLongAxis(dtype=BF, name="sums"), BF)


class AccumulatesLongAxis(L.Layer):
    def call(self, x):
        return keras.ops.cumsum(keras.ops.tile(x, (1, 400)), axis=-1)[:, :6]


@planted("low_reduction", "sums", backends=("tensorflow", "torch"))
def cumulative_sum_over_a_long_axis(fixed):
    return around(AccumulatesLongAxis(dtype=BF, name="sums"), BF)


class NormalizesLow(L.Layer):
    def call(self, x):
        return x * keras.ops.rsqrt(keras.ops.mean(keras.ops.square(x), axis=-1, keepdims=True) + 1)


@planted("low_normalization", "norm")
def normalization_in_low_precision(fixed):
    return around(NormalizesLow(dtype=BF, name="norm"), BF)


@planted("low_output", "head")
def output_in_float16(fixed):
    inputs = keras.Input((6,))
    outputs = L.Dense(2, dtype=FP, name="head")(L.Dense(6, dtype=FP)(inputs))
    return compiled(inputs, outputs, scaled()), (rows(4, 6), rows(4, 2))


@planted("low_output", "second")
def second_output_in_bfloat16(fixed):
    inputs = keras.Input((6,))
    body = L.Dense(6, dtype=BF)(inputs)
    outputs = [L.Dense(2, dtype=F32, name="first")(body), L.Dense(2, dtype=BF, name="second")(body)]
    return compiled(inputs, outputs, loss=["mse", "mse"]), (rows(4, 6), (rows(4, 2), rows(4, 2)))


@planted("low_output", "tail/head")
def output_of_a_nested_model(fixed):
    tail = keras.Sequential([keras.Input((6,)), L.Dense(2, dtype=BF, name="head")], name="tail")
    inputs = keras.Input((6,))
    return compiled(inputs, tail(L.Dense(6, dtype=BF)(inputs))), (rows(4, 6), rows(4, 2))


@planted("low_loss", "loss", by_rule=False)
def loss_in_bfloat16(fixed):
    model, batch = chain(F32)
    model.compile("sgd", keras.losses.MeanSquaredError(dtype=F32 if fixed else "bfloat16"))
    return model, batch


class AddsLowLoss(L.Layer):
    def __init__(self, kept, **kwargs):
        super().__init__(**kwargs)
        self.kept = kept

    def call(self, x):
        self.add_loss(keras.ops.mean(keras.ops.cast(x, "float32") if self.kept else x))
        return x


# TensorFlow refuses to add losses of two dtypes.
@planted("low_loss", "loss", by_rule=False, backends=("jax", "torch"))
def added_loss_in_bfloat16(fixed):
    return around(AddsLowLoss(fixed, dtype=BF, name="adds"), BF)


@planted("variable_dtype", "switched")
def policy_changed_after_build(fixed):
    layer = L.Dense(6, dtype=F32, name="switched")
    model, batch = chain(BF, F32, BF, layer=lambda i, p: layer if i == 1 else None)
    layer.dtype_policy = "bfloat16"
    return model, batch


@planted("low_variables", "pure", by_rule=False)
def weights_without_masters(fixed):
    return around(L.Dense(4, dtype=BF if fixed else "bfloat16", name="pure"), BF)


@planted("float64", "double", by_rule=False)
def dense_in_float64(fixed):
    return around(L.Dense(4, dtype=F32 if fixed else "float64", name="double"), F32)


@planted("input_cast", "tokens", by_rule=False)
def integers_through_a_float_input(fixed):
    tokens = keras.Input((5,), name="tokens", dtype="int32" if fixed else "float32")
    tensor = L.Flatten()(L.Embedding(10, 4)(tokens))
    return compiled(tokens, L.Dense(2)(tensor)), (np.ones((4, 5), "int32"), rows(4, 2))


@planted("input_cast", "numbers", by_rule=False)
def float64_input(fixed):
    inputs = keras.Input((6,), name="numbers")
    x = rows(4, 6)
    return compiled(inputs, L.Dense(2)(inputs)), (x if fixed else x.astype("float64"), rows(4, 2))


@planted("no_loss_scale", "d0", by_rule=False)
def float16_layer_without_loss_scale(fixed):
    model, batch = chain(FP, FP)
    model.compile(scaled() if fixed else keras.optimizers.SGD(), "mse")
    return model, batch


@clean
def float32_chain():
    return chain(F32, F32)


@clean
def bfloat16_body_float32_head():
    return chain(BF, BF, BF)


@clean
def float16_body_scaled():
    return chain(FP, FP)


@clean
def attention_without_dropout():
    inputs = keras.Input((5, 8))
    body = L.Dense(8, dtype=BF)(inputs)
    tensor = L.MultiHeadAttention(2, 4, dropout=0.0, dtype=BF)(body, body)
    tensor = L.GlobalAveragePooling1D(dtype=BF)(L.Add(dtype=BF)([tensor, body]))
    return compiled(inputs, L.Dense(2, dtype=F32)(tensor)), (rows(4, 5, 8), rows(4, 2))


@clean
def convolutions_and_batch_norm():
    inputs = keras.Input((8, 8, 3))
    tensor = inputs
    for _ in range(2):
        tensor = L.Conv2D(4, 3, padding="same", dtype=BF)(tensor)
        tensor = L.ReLU(dtype=BF)(L.BatchNormalization(dtype=BF)(tensor))
    tensor = L.GlobalAveragePooling2D(dtype=BF)(tensor)
    return compiled(inputs, L.Dense(2, dtype=F32)(tensor)), (rows(4, 8, 8, 3), rows(4, 2))


@clean
def recurrent():
    inputs = keras.Input((5, 3))
    tensor = L.GRU(4, dtype=BF)(
        L.Bidirectional(L.LSTM(4, return_sequences=True, dtype=BF), dtype=BF)(inputs)
    )
    return compiled(inputs, L.Dense(2, dtype=F32)(tensor)), (rows(4, 5, 3), rows(4, 2))


@clean
def tokens_as_integers():
    tokens = keras.Input((5,), dtype="int32")
    tensor = L.Flatten(dtype=BF)(L.Embedding(10, 4, dtype=BF)(tokens))
    return compiled(tokens, L.Dense(2, dtype=F32)(tensor)), (np.ones((4, 5), "int32"), rows(4, 2))


@clean
def mean_over_a_long_axis_which_keras_computes_in_float32():
    inputs = keras.Input((2048, 2))
    tensor = L.GlobalAveragePooling1D(dtype=BF)(L.Dense(4, dtype=BF)(inputs))
    return compiled(inputs, L.Dense(2, dtype=F32)(tensor)), (rows(2, 2048, 2), rows(2, 2))


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__(name="subclassed")
        self.body = L.Dense(6, dtype=BF, name="body")
        self.head = L.Dense(2, dtype=F32, name="head")

    def call(self, x):
        return self.head(self.body(self.body(x)))


@clean
def subclassed_with_a_shared_layer():
    model = Subclassed()
    model(rows(4, 6))
    model.compile("sgd", "mse")
    return model, (rows(4, 6), rows(4, 2))


@clean
def nested_and_normalized():
    inner = keras.Sequential(
        [keras.Input((6,)), L.Dense(6, dtype=BF), L.LayerNormalization(dtype=BF)], name="inner"
    )
    return around(inner, BF)
