"""TensorFlow's warning of retraced functions, where each trace is wanted."""

import contextlib
import logging
from collections.abc import Iterator

_WORDING = "triggered tf.function retracing"


@contextlib.contextmanager
def expected_retraces() -> Iterator[None]:
    """Within the context TensorFlow does not warn that a function was traced again.

    Each configuration is a step of its own. TensorFlow counts them as one function's, and advises
    the user to mend a loop that is none of theirs.
    """
    logger = logging.getLogger("tensorflow")
    logger.addFilter(_is_other)
    try:
        yield
    finally:
        logger.removeFilter(_is_other)


def _is_other(record: logging.LogRecord) -> bool:
    return _WORDING not in record.getMessage()
