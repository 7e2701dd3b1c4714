"""ResNet-20 for small images."""

import keras

_BLOCKS_PER_STAGE = 3
_FILTERS = (16, 32, 64)
_WEIGHT_DECAY = 1e-4


def create_resnet20(input_shape: tuple[int, int, int], classes: int) -> keras.Model:
    """Builds the 20-layer residual network of He et al. for small images, version 1.

    One 3x3 convolution, then three stages of three basic blocks with 16, 32 and 64 filters, each
    stage but the first halving the picture, then global average pooling and a dense layer:
    6 x 3 + 2 = 20 layers with weights. Shortcuts have no parameters: where a stage begins, they
    take every second pixel and fill the new channels with zeros (the paper's option A).
    Convolutions have no bias and a weight decay of 1e-4.

    Args:
        input_shape: Height, width and channels of an image.
        classes: How many classes there are.

    Returns:
        A functional model, from images `(batch, height, width, channels)` to logits
        `(batch, classes)`.

    Example:
        >>> model = create_resnet20((32, 32, 3), classes=10)
        >>> sum(int(keras.ops.size(weight)) for weight in model.trainable_weights)
        269722

    References:
        K. He, X. Zhang, S. Ren, J. Sun: Deep Residual Learning for Image Recognition, 2015, section
        4.2, https://arxiv.org/abs/1512.03385
    """
    inputs = keras.Input(input_shape, name="image")
    x = _convolve(inputs, _FILTERS[0], name="stem")
    x = keras.layers.ReLU(name="stem_relu")(x)
    for stage, filters in enumerate(_FILTERS, start=1):
        for block in range(1, _BLOCKS_PER_STAGE + 1):
            strides = 2 if stage > 1 and block == 1 else 1
            x = _basic_block(x, filters, strides, name=f"stage{stage}_block{block}")
    x = keras.layers.GlobalAveragePooling2D(name="pool")(x)
    outputs = keras.layers.Dense(classes, name="logits")(x)
    return keras.Model(inputs, outputs, name="resnet20")


def _basic_block(
    x: keras.KerasTensor, filters: int, strides: int, *, name: str
) -> keras.KerasTensor:
    shortcut = _shorten(x, filters) if strides > 1 else x
    x = _convolve(x, filters, strides, name=f"{name}_1")
    x = keras.layers.ReLU(name=f"{name}_1_relu")(x)
    x = _convolve(x, filters, name=f"{name}_2")
    x = keras.layers.Add(name=f"{name}_add")([x, shortcut])
    return keras.layers.ReLU(name=f"{name}_relu")(x)


def _convolve(
    x: keras.KerasTensor, filters: int, strides: int = 1, *, name: str
) -> keras.KerasTensor:
    x = keras.layers.Conv2D(
        filters,
        3,
        strides,
        padding="same",
        use_bias=False,
        kernel_initializer="he_normal",
        kernel_regularizer=keras.regularizers.L2(_WEIGHT_DECAY / 2),
        name=f"{name}_conv",
    )(x)
    return keras.layers.BatchNormalization(momentum=0.9, epsilon=1e-5, name=f"{name}_norm")(x)


def _shorten(x: keras.KerasTensor, filters: int) -> keras.KerasTensor:
    """The shortcut without parameters: every second pixel, zeros for the channels that are new."""
    missing = filters - x.shape[-1]
    return keras.ops.pad(
        x[:, ::2, ::2, :], ((0, 0), (0, 0), (0, 0), (missing // 2, missing - missing // 2))
    )
