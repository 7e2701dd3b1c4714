"""Chooses which tests run under the Keras back end at hand (environment variable KERAS_BACKEND)."""

import os
import sys

import pytest

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

BACKEND = os.environ["KERAS_BACKEND"]


@pytest.hookimpl(tryfirst=True)  # before pytest chooses by marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        slow_with = item.get_closest_marker("slow_with")
        if slow_with and BACKEND in slow_with.args:
            item.add_marker(pytest.mark.slow)
        if item.get_closest_marker("pure") and BACKEND != "tensorflow":
            item.add_marker(pytest.mark.skip(reason="needs no back end; runs with TensorFlow's"))
        only = item.get_closest_marker("backend")
        if only and BACKEND not in only.args:
            item.add_marker(pytest.mark.skip(reason=f"is for {', '.join(only.args)}"))


@pytest.fixture
def global_dtype_policy():
    """Restores Keras's global policy of this thread."""
    import keras

    before = keras.config.dtype_policy()
    yield before
    keras.config.set_dtype_policy(before)


@pytest.fixture(autouse=True)
def name_scopes_closed():
    """Keras leaves the scope open of a layer whose name TensorFlow refuses, such as `x:2`."""
    yield
    state = sys.modules.get("keras.src.backend.common.global_state")
    if state is not None:
        state.set_global_attribute("name_scope_stack", [])
