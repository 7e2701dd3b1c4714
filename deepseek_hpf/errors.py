"""What is raised at the user: each says what was expected, what was received, and the way out."""


class ConfigError(ValueError):
    """A configuration, argument or file that cannot be used as it is.

    Example:
        >>> from deepseek_hpf import ConfigError, PrecisionConfig
        >>> try:
        ...     PrecisionConfig.from_dict({"polcy": "auto"})
        ... except ConfigError as error:
        ...     print("policy" in str(error))
        True
    """


class ConfigTypeError(ConfigError, TypeError):
    """A `ConfigError` where Keras raises `TypeError`: callers of either catch it."""


class PrecisionError(RuntimeError):
    """An operation that would have corrupted weights, state or numbers, refused.

    Example:
        >>> from deepseek_hpf import PrecisionError
        >>> issubclass(PrecisionError, RuntimeError)
        True
    """


class MissingBackendError(ImportError):
    """The framework that Keras runs on is not installed.

    Args:
        framework: Import name of the missing framework, e.g. `"tensorflow"`.
    """

    def __init__(self, framework: str):
        self.framework = framework
        super().__init__(
            f"Keras is set to run on {framework!r}, which is not installed. Install a back end "
            "with `pip install 'deepseek_hpf[tensorflow]'`, `'deepseek_hpf[jax]'` or "
            "`'deepseek_hpf[torch]'`, and name it in the environment variable KERAS_BACKEND "
            '("tensorflow", "jax" or "torch").',
            name=framework,
        )


def told(error: Exception) -> str:
    r"""What an error says, in a line.

    Args:
        error: The error.

    Returns:
        Its type and its first line.

    Example:
        >>> from deepseek_hpf.errors import told
        >>> told(ValueError("no kernel\nat 0x7f"))
        'ValueError: no kernel'
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:160]}" if lines else type(error).__name__
