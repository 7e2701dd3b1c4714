"""What works under which Keras back end, read from the marks of the tests.

    python tests/support_table.py

prints the table of the README, which a test compares. CI runs each test that is not marked for
other back ends. Where three quarters of the tests of a feature run, it works: the rest are about
what one framework alone has, such as replicas under TensorFlow. Tests that need no back end do not
count, nor do those in files that are named for one, which test how and not what.
`HybridPrecisionContext` needs no Keras, and has no line here.
"""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

TESTS = Path(__file__).parent
BACKENDS = {"tensorflow": "TensorFlow", "jax": "JAX", "torch": "PyTorch"}

FUSED = ("activation", "batch", "bias", "depthwise", "fused", "grouped", "layer", "lstm", "narrow")

FEATURES = {
    "policies, rules, report, `export`": ("test_policy.py", "adapters/test_"),
    "fused kernels": tuple(f"adapters/kernels/test_{name}" for name in FUSED),
    '`"backward": "float32"`': ("adapters/kernels/test_float32_gradients",),
    "loss scaling, guard, clipping, masters": ("optimizers/test_", "adapters/test_guard.py"),
    "`callbacks.BackupAndRestore`": ("checkpoint/", "callbacks/test_backup"),
    "`callbacks.DynamicPrecision`, `hpf events`": ("dynamic/",),
    "`tune`, `hpf tune`": ("tuning/", "cli/test_tune"),
    "`hpf bench`": ("bench/", "cli/test_bench"),
    "`profile`, `hpf_profiler`": ("profiler/", "cli/test_profiler"),
    "activation compression": ("storage/", "memory/test_compress"),
    "`memory.estimate`, `memory.find_batch_size`": (
        "memory/test_estimate",
        "memory/test_find",
        "callbacks/test_batch_size",
        "cli/test_estimate",
    ),
    "datasets, `data.prefetch`": ("data/",),
    "`hpf demo`": ("demo/",),
}


class Marks:
    """A plugin of pytest that notes which back ends each test runs with."""

    def __init__(self):
        self.found = []

    def pytest_collection_finish(self, session):
        for item in session.items:
            only = item.get_closest_marker("backend")
            pure = item.get_closest_marker("pure") is not None
            path = item.path.relative_to(TESTS).as_posix()
            self.found.append((path, [] if pure else list(only.args if only else BACKENDS)))


def collected():
    """Returns pairs of a test's file and its back ends; collects in a process of its own."""
    code = (
        "import json, sys, pytest; sys.path.insert(0, 'tests'); from support_table import Marks; "
        "marks = Marks(); status = pytest.main(['--collect-only', '-qq', "
        "'tests'], plugins=[marks]); print('\\n' + json.dumps(marks.found)); sys.exit(status)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=TESTS.parent,
        capture_output=True,
        text=True,
        env={**os.environ, "KERAS_BACKEND": "tensorflow"},
        check=False,
    )
    if done.returncode:
        told = "\n".join(done.stdout.splitlines()[:-1])  # without the marks
        raise RuntimeError(f"The tests cannot be collected:\n{told}\n{done.stderr}")
    return [(path, tuple(names)) for path, names in json.loads(done.stdout.splitlines()[-1])]


def cell(count, total):
    """What a number of tests says, out of all those of a feature."""
    return "yes" if count >= 0.75 * total else "in part" if count else "no"


def is_of_features(path):
    """Whether a file tests what there is, and not how one framework does it."""
    return not Path(path).stem.endswith(tuple(BACKENDS))


def table(tests):
    """Returns the table in Markdown."""
    lines = ["| | " + " | ".join(BACKENDS.values()) + " |", "| --- " * 4 + "|"]
    for feature, places in FEATURES.items():
        own = [n for path, n in tests if n and path.startswith(places) and is_of_features(path)]
        if not own:
            raise ValueError(f"No test of {feature!r} runs under a back end: {places}")
        counts = Counter(name for names in own for name in names)
        cells = [cell(counts[name], len(own)) for name in BACKENDS]
        lines.append(f"| {feature} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table(collected()))
