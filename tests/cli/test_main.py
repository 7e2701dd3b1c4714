"""The start of `hpf`: light, and with errors of a line."""

import os
import subprocess
import sys

import pytest

from deepseek_hpf import config_schema
from deepseek_hpf.cli.main import COMMANDS, run
from deepseek_hpf.errors import ConfigError, MissingBackendError, PrecisionError

pytestmark = pytest.mark.pure


def hpf(*arguments: str) -> int:
    """Runs the command line in this process; returns its exit code."""
    with pytest.raises(SystemExit) as caught:
        run(list(arguments))
    return caught.value.code or 0


def test_help_lists_every_command_and_imports_nothing_heavy():
    code = (
        "import sys\n"
        "from deepseek_hpf.cli.main import run\n"
        "try: run(['--help'])\n"
        "except SystemExit as end: assert not end.code\n"
        "heavy = {'numpy', 'keras', 'pydantic', 'tensorflow', 'jax', 'torch'} & set(sys.modules)\n"
        "print('heavy:', *sorted(heavy))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.rstrip().endswith("heavy:")
    for name, command in COMMANDS.items():
        assert f" {name} " in done.stdout
        assert command.__doc__.split()[0] in done.stdout


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(name, capsys):
    assert hpf(name, "--help") == 0
    assert f"Usage: hpf {name}" in capsys.readouterr().out


def test_version(capsys):
    import deepseek_hpf

    assert hpf("--version") == 0
    assert capsys.readouterr().out == f"deepseek_hpf {deepseek_hpf.__version__}\n"


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (ConfigError("policy: expected [x]"), 2, "error: policy: expected [x]\n"),
        (PrecisionError("refused"), 2, "error: refused\n"),
        (MissingBackendError("jax"), 2, "error: Keras is set to run on 'jax'"),
        (OSError(28, "No space left on device", "a.json"), 2, "error: [Errno 28] No space left"),
        (KeyboardInterrupt(), 130, "Interrupted.\n"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_what_the_user_can_put_right_is_one_line(monkeypatch, capsys, error, code, text):
    def fail() -> str:
        raise error

    monkeypatch.setattr(config_schema, "schema_text", fail)
    assert hpf("schema") == code
    captured = capsys.readouterr()
    assert captured.err.startswith(text)
    assert captured.err.count("\n") == 1
    assert captured.out == ""


def test_mistakes_of_ours_keep_their_traceback(monkeypatch):
    def fail() -> str:
        raise ZeroDivisionError

    monkeypatch.setattr(config_schema, "schema_text", fail)
    with pytest.raises(ZeroDivisionError):
        run(["schema"])


@pytest.mark.parametrize(
    "arguments", [["chek"], ["check"], ["check", "--nonsense"], ["--nonsense"]]
)
def test_wrong_usage_is_exit_code_2(capsys, arguments):
    assert hpf(*arguments) == 2
    assert "Usage: hpf" in capsys.readouterr().err


def test_no_arguments_print_the_help(capsys):
    hpf()
    captured = capsys.readouterr()
    assert "check" in captured.out + captured.err


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("hpf tu", ["tune"]),
        ("hpf e", ["env", "estimate", "events"]),
        ("hpf tune --ba", ["--batch-size"]),
    ],
)
def test_the_shell_completes_commands_and_options(typed, offered):
    words = typed.split()
    done = subprocess.run(
        [sys.executable, "-c", "from deepseek_hpf.cli.main import run; run()"],
        env={
            **os.environ,
            "_HPF_COMPLETE": "complete_bash",
            "COMP_WORDS": typed,
            "COMP_CWORD": str(len(words) - 1),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.split() == offered
