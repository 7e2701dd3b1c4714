"""Image models of the suite, compiled: those of Keras without weights, and a U-Net."""

from typing import Any

import keras
from keras import layers

CLASSES = 10


def resnet50() -> keras.Model:
    """ResNet-50 at 96 px (He et al. 2015)."""
    return _application("ResNet50", 96)


def mobilenetv2() -> keras.Model:
    """MobileNetV2 at 96 px (Sandler et al. 2018)."""
    return _application("MobileNetV2", 96)


def efficientnetv2b0() -> keras.Model:
    """EfficientNetV2-B0 at 96 px (Tan, Le 2021)."""
    return _application("EfficientNetV2B0", 96)


def densenet121() -> keras.Model:
    """DenseNet-121 at 96 px (Huang et al. 2016)."""
    return _application("DenseNet121", 96)


def convnexttiny() -> keras.Model:
    """ConvNeXt-Tiny at 64 px (Liu et al. 2022)."""
    return _application("ConvNeXtTiny", 64)


def vgg16() -> keras.Model:
    """VGG-16 at 64 px (Simonyan, Zisserman 2014)."""
    return _application("VGG16", 64)


def xception() -> keras.Model:
    """Xception at 96 px (Chollet 2016). Not in the suite: a model that it was not made with."""
    return _application("Xception", 96)


def unet(side: int = 96, width: int = 32, depth: int = 3) -> keras.Model:
    """U-Net (Ronneberger et al. 2015) with batch normalization; it finds a mask.

    Args:
        side: Height and width in pixels, a multiple of `2 ** depth`.
        width: Channels of the first level; each level below has twice as many.
        depth: Levels below the first.

    Returns:
        The compiled model.
    """
    x = inputs = keras.Input((side, side, 3))
    across = []
    for level in range(depth):
        x = _two_convolutions(x, width * 2**level)
        across.append(x)
        x = layers.MaxPooling2D()(x)
    x = _two_convolutions(x, width * 2**depth)
    for level in reversed(range(depth)):
        x = layers.Conv2DTranspose(width * 2**level, 2, strides=2)(x)
        x = _two_convolutions(layers.Concatenate()([across[level], x]), width * 2**level)
    model = keras.Model(inputs, layers.Conv2D(1, 1, activation="sigmoid")(x), name="unet")
    # Of one channel: under PyTorch, Keras's sparse cross entropy over pixels has no gradient.
    model.compile(optimizer="adam", loss="binary_crossentropy")
    return model


def _two_convolutions(x: Any, channels: int) -> Any:
    for _ in range(2):
        x = layers.Conv2D(channels, 3, padding="same", use_bias=False)(x)
        x = layers.ReLU()(layers.BatchNormalization()(x))
    return x


def _application(name: str, side: int) -> keras.Model:
    create = getattr(keras.applications, name)
    return _compiled(create(weights=None, input_shape=(side, side, 3), classes=CLASSES))


def _compiled(model: keras.Model) -> keras.Model:
    model.compile(optimizer="adam", loss="sparse_categorical_crossentropy")
    return model
