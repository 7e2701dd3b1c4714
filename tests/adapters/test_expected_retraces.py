"""Within the context TensorFlow's warning of retraces is left out, and nothing else."""

import logging

import pytest

from deepseek_hpf.adapters.expected_retraces import expected_retraces

pytestmark = pytest.mark.pure

ADVICE = "5 out of the last 13 calls to %r triggered tf.function retracing. Tracing is expensive"


def test_only_that_warning_is_left_out_and_only_within(caplog):
    logger = logging.getLogger("tensorflow")
    with caplog.at_level(logging.WARNING, logger="tensorflow"):
        logger.addHandler(caplog.handler)  # TensorFlow's logger does not propagate
        try:
            with expected_retraces():
                with expected_retraces():
                    logger.warning(ADVICE, "inner step")
                logger.warning(ADVICE, "step")
                logger.warning("something else")
            logger.warning(ADVICE, "after")
            with pytest.raises(KeyError), expected_retraces():
                raise KeyError
            logger.warning("the end")
        finally:
            logger.removeHandler(caplog.handler)
    said = list(dict.fromkeys(record.getMessage() for record in caplog.records))
    assert said == ["something else", ADVICE % "after", "the end"]
