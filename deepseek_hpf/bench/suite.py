"""The suite: ten models of the kinds that are trained, small enough for a CPU."""

from typing import NamedTuple

from deepseek_hpf.config_wording import nearest_hint
from deepseek_hpf.errors import ConfigError


class SuiteModel(NamedTuple):
    """A model of the suite: what it is called in a table, and its factory."""

    title: str
    target: str


_IMAGES, _OTHERS = "deepseek_hpf.bench.image_models", "deepseek_hpf.bench.other_models"
SUITE = {
    "resnet50": SuiteModel("ResNet-50, 96 px", f"{_IMAGES}:resnet50"),
    "mobilenetv2": SuiteModel("MobileNetV2, 96 px", f"{_IMAGES}:mobilenetv2"),
    "efficientnetv2b0": SuiteModel("EfficientNetV2-B0, 96 px", f"{_IMAGES}:efficientnetv2b0"),
    "densenet121": SuiteModel("DenseNet-121, 96 px", f"{_IMAGES}:densenet121"),
    "convnexttiny": SuiteModel("ConvNeXt-Tiny, 64 px", f"{_IMAGES}:convnexttiny"),
    "vgg16": SuiteModel("VGG-16, 64 px", f"{_IMAGES}:vgg16"),
    "unet": SuiteModel("U-Net, 96 px", f"{_IMAGES}:unet"),
    "lstm": SuiteModel("two-layer LSTM-256", f"{_OTHERS}:lstm"),
    "gpt": SuiteModel("GPT, 4 blocks of 256", f"{_OTHERS}:gpt"),
    "mlp": SuiteModel("MLP, 3 layers of 1024", f"{_OTHERS}:mlp"),
}


def chosen(names: str | None) -> dict[str, SuiteModel]:
    """Returns those models of the suite that are asked for, in the order of asking.

    Args:
        names: Names with commas between, e.g. `"resnet50,mlp"`; None for all.

    Returns:
        Name to model.

    Raises:
        ConfigError: There is no such model.

    Example:
        >>> list(chosen("mlp,resnet50"))
        ['mlp', 'resnet50']
    """
    if names is None:
        return SUITE
    asked = [name.strip().lower() for name in names.split(",") if name.strip()]
    unknown = [name for name in asked if name not in SUITE]
    if unknown or not asked:
        received = repr(unknown[0]) if unknown else repr(names)
        hint = nearest_hint(unknown[0], SUITE) if unknown else ""
        raise ConfigError(
            f"Expected models of the suite: {', '.join(SUITE)}. Received: {received}.{hint}"
        )
    return {name: SUITE[name] for name in asked}
