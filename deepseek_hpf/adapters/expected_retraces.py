"""TensorFlow's warning of retraced functions, where each trace is wanted."""

import contextlib
import functools
import logging
from collections.abc import Iterator

_WORDING = "triggered tf.function retracing"


@contextlib.contextmanager
def expected_retraces() -> Iterator[None]:
    """Within the context TensorFlow does not warn that a function was traced again.

    Each configuration that is tried, and each step that is run once more, is a function of its own.
    TensorFlow counts them as one, and advises the user to mend a loop that is none of theirs.
    """
    logger = logging.getLogger("tensorflow")
    own = functools.partial(_is_other)  # contexts may nest, and overlap in several threads
    logger.addFilter(own)
    try:
        yield
    finally:
        logger.removeFilter(own)


def _is_other(record: logging.LogRecord) -> bool:
    return _WORDING not in record.getMessage()
