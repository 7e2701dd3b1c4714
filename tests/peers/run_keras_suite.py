"""Runs a test module that Keras ships in its wheel, with our classes in place of Keras's."""

import importlib
import json
import os
import subprocess
import sys
import tempfile
import types
from dataclasses import dataclass, field
from pathlib import Path

_REPLACEMENTS, _OUTCOMES = "KERAS_SUITE_REPLACEMENTS", "KERAS_SUITE_OUTCOMES"


@dataclass
class SuiteCounts:
    """Outcomes of one run; a test is named `Class::test`, as in `waived`.

    Args:
        passed: Number of tests that passed, the waived ones left out.
        skipped: Number of tests that the module itself skips.
        failed: Name to the end of the traceback, for failures that were not waived.
        waived: Names of waived tests that failed, as expected.
        needless: Names in `waived` of tests that passed, or that do not exist.
    """

    passed: int = 0
    skipped: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    waived: list[str] = field(default_factory=list)
    needless: list[str] = field(default_factory=list)


def run_keras_suite(
    module: str | list[str],
    replacements: dict[str, str],
    waived: dict[str, str],
    timeout: float = 300.0,
) -> SuiteCounts:
    """Runs the module, or several, in a process of its own, on the Keras back end of this one.

    Args:
        module: E.g. `"keras.src.dtype_policies.dtype_policy_test"`.
        replacements: Dotted name of a class to the dotted name of ours. What is named is set
            before the tests are collected. Name the class as the *test module* holds it
            (`"….some_test.Class"`, or `"….some_test.alias.Class"` where it writes `alias.Class`);
            a name in one of Keras's other modules changes Keras itself.
        waived: `Class::test` (with its parameters, if it has some) to the reason why ours differs.
        timeout: Seconds.

    Returns:
        The counts. A passing suite has `failed == {}`, `needless == []` and `passed > 0`.
    """
    with tempfile.TemporaryDirectory() as folder:
        outcomes = Path(folder) / "outcomes.json"
        environment = os.environ | {
            _REPLACEMENTS: json.dumps(replacements),
            _OUTCOMES: str(outcomes),
            "PYTHONPATH": os.pathsep.join(
                [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
            ),
            # The options and plugins of the suite around must not reach into this one.
            "PYTEST_ADDOPTS": "",
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        }
        modules = [module] if isinstance(module, str) else module
        plugin = ["-p", Path(__file__).stem, "-p", "no:cacheprovider"]
        command = [sys.executable, "-m", "pytest", "-q", "--pyargs", *modules, *plugin]
        command += ["-c", os.devnull, "--rootdir", folder]
        done = subprocess.run(
            command, env=environment, cwd=folder, capture_output=True, text=True, timeout=timeout
        )
        assert outcomes.exists(), done.stdout[-4000:] + done.stderr[-4000:]
        return _count(json.loads(outcomes.read_text()), waived)


def _count(outcomes: dict[str, list[str]], waived: dict[str, str]) -> SuiteCounts:
    counts = SuiteCounts(needless=[name for name in waived if name not in outcomes])
    for name, (outcome, detail) in outcomes.items():
        if outcome == "skipped":
            counts.skipped += 1
        elif name in waived:
            (counts.waived if outcome == "failed" else counts.needless).append(name)
        elif outcome == "failed":
            counts.failed[name] = detail
        else:
            counts.passed += 1
    return counts


# From here on: the pytest plugin that the inner process loads this file as.


def _import(dotted):
    module, _, name = dotted.rpartition(".")
    return getattr(importlib.import_module(module), name)


def _put(dotted, replacement):
    """Sets `module.Class`; or `test_module.alias.Class`, in a copy of what `alias` is."""
    holder, _, name = dotted.rpartition(".")
    try:
        target = importlib.import_module(holder)
    except ModuleNotFoundError:
        # Keras goes on using its own class: its `isinstance` checks would refuse its others.
        test_module, _, alias = holder.rpartition(".")
        target = types.SimpleNamespace(**vars(_import(holder)))
        setattr(importlib.import_module(test_module), alias, target)
    old = getattr(target, name)
    assert issubclass(replacement, old), f"{replacement} does not take the place of {old}"
    setattr(target, name, replacement)


def pytest_configure(config):
    if _REPLACEMENTS in os.environ:
        for old, new in json.loads(os.environ[_REPLACEMENTS]).items():
            _put(old, _import(new))


def pytest_runtest_logreport(report):
    name = report.nodeid.partition("::")[2]
    detail = str(report.longrepr)[-1500:] if report.failed else ""
    # Setup and teardown count when they fail or skip; a test without either is judged by its call.
    if report.when == "call" or not report.passed:
        _OUTCOME_OF[name] = [report.outcome, detail]


def pytest_collectreport(report):
    if report.failed:
        _OUTCOME_OF[f"collection of {report.nodeid}"] = ["failed", str(report.longrepr)[-1500:]]


def pytest_sessionfinish():
    if _OUTCOMES in os.environ:
        Path(os.environ[_OUTCOMES]).write_text(json.dumps(_OUTCOME_OF))


_OUTCOME_OF: dict[str, list[str]] = {}
