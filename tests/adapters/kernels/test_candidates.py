import keras
import pytest

pytestmark = pytest.mark.backend("tensorflow")


def chosen(layer):
    from deepseek_hpf.adapters.kernels.candidates_tensorflow import candidates

    return next((n for n, module in candidates(layer).items() if not module.refuses(layer)), None)


@pytest.mark.parametrize(
    ("layer", "name"),
    [
        (keras.layers.Conv2D(4, 3, groups=4, activation="gelu"), "grouped convolution"),
        (keras.layers.Conv2D(4, 3, activation="gelu"), "activation"),
        (keras.layers.Conv2D(4, 3), None),
        (
            keras.layers.DepthwiseConv2D(3, strides=2, dtype="mixed_bfloat16"),
            "depthwise convolution",
        ),
        (keras.layers.DepthwiseConv2D(3, activation="silu"), "activation"),
        (keras.layers.Dropout(0.5), None),
    ],
)
def test_choice_of_a_kernel(layer, name):
    layer.build((None, 8, 8, 4))
    assert chosen(layer) == name


def test_subclasses_have_no_kernel():
    class Own(keras.layers.Dense):
        pass

    layer = Own(4, activation="gelu")
    layer.build((None, 4))
    assert chosen(layer) is None
