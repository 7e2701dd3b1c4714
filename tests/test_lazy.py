"""Without the framework that Keras is set to, every entrance says what to install."""

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.pure

# As in an environment where none of them is installed.
WITHOUT_BACK_ENDS = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("tensorflow", "jax", "torch", "openvino"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
"""
TRY_NAMES = """
import deepseek_hpf as hpf
for name in ("MixedPrecisionPolicy", "apply_policy", "LossScaleOptimizer", "MixedPrecisionPolicy"):
    try:
        getattr(hpf, name)
    except ImportError as error:
        print(error)
print(hpf.PrecisionConfig(policy="float32").policy, hpf.hardware.devices()[0].kind)
"""
COMMAND_LINE = "from deepseek_hpf.cli.main import run; run(['tune', 'models:make'])"


def python(code: str, backend: str) -> subprocess.CompletedProcess[str]:
    """Runs code in a process of its own."""
    environment = {**os.environ, "KERAS_BACKEND": backend}
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False
    )


@pytest.mark.parametrize("backend", ["tensorflow", "jax", "torch", "openvino"])
def test_a_missing_back_end_names_the_extras(backend):
    done = python(WITHOUT_BACK_ENDS + TRY_NAMES, backend)
    *errors, works = done.stdout.splitlines()
    assert len(errors) == 4, done.stderr
    for error in errors:
        assert error.startswith(f"Keras is set to run on {backend!r}, which is not installed.")
        assert all(f"deepseek_hpf[{extra}]" in error for extra in ("tensorflow", "jax", "torch"))
    assert works == "float32 cpu"


def test_on_the_command_line_it_is_one_line():
    done = python(WITHOUT_BACK_ENDS + COMMAND_LINE, "jax")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: Keras is set to run on 'jax'")
    assert done.stderr.count("\n") == 1


def test_a_back_end_that_keras_does_not_know_is_one_line():
    done = python(COMMAND_LINE, "pytorch")
    assert (done.returncode, done.stdout) == (2, "")
    assert 'KERAS_BACKEND to be "tensorflow", "jax" or "torch"' in done.stderr
    assert "Received: 'pytorch'" in done.stderr
    assert done.stderr.count("\n") == 1


def test_importing_warns_of_nothing():
    code = "import deepseek_hpf as hpf; hpf.PrecisionConfig; hpf.hardware.devices()"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
