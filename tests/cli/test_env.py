"""`hpf env`: what a bug report needs, without starting a framework."""

import json
import os
import subprocess
import sys

import pytest

import deepseek_hpf
from deepseek_hpf.cli.env import PACKAGES, environment
from deepseek_hpf.cli.main import run

pytestmark = pytest.mark.pure


def printed(capsys, *arguments: str) -> str:
    """What the command prints."""
    with pytest.raises(SystemExit) as caught:
        run(["env", *arguments])
    assert not caught.value.code
    return capsys.readouterr().out


def test_json_is_what_the_lines_say(capsys, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_use_thunk_runtime=false")
    found = json.loads(printed(capsys, "--json"))
    lines = printed(capsys).splitlines()
    assert found["packages"].keys() == set(PACKAGES)
    assert found["packages"]["deepseek_hpf"] == deepseek_hpf.__version__
    assert f"deepseek_hpf: {deepseek_hpf.__version__}" in lines
    assert "$XLA_FLAGS: --xla_cpu_use_thunk_runtime=false" in lines
    assert found["devices"][0]["kind"] == "cpu"
    assert f"  bfloat16: {found['devices'][0]['dtypes']['bfloat16']}" in lines


def test_what_is_not_installed_is_said(capsys, monkeypatch):
    monkeypatch.setattr("deepseek_hpf.cli.env.PACKAGES", ("keras", "no-such-package"))
    assert json.loads(printed(capsys, "--json"))["packages"]["no-such-package"] is None
    assert "no-such-package: not installed" in printed(capsys).splitlines()


@pytest.mark.parametrize("content", ['{"backend": "jax"}', "{", "[]", None])
def test_kerass_settings_are_read_as_keras_reads_them(tmp_path, monkeypatch, content):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    monkeypatch.delenv("KERAS_BACKEND", raising=False)
    if content is not None:
        (tmp_path / "keras.json").write_text(content)
    is_set = content == '{"backend": "jax"}'
    assert environment()["keras"]["backend"] == ("jax" if is_set else "tensorflow")
    monkeypatch.setenv("KERAS_BACKEND", "torch")
    assert environment()["keras"]["backend"] == "torch"


def test_nothing_else_of_the_environment_is_shown(capsys, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not to be seen")
    assert "not to be seen" not in printed(capsys) + printed(capsys, "--json")


def test_it_starts_no_framework():
    code = (
        "import sys\n"
        "from deepseek_hpf.cli.main import run\n"
        "try: run(['env'])\n"
        "except SystemExit as end: assert not end.code\n"
        "print('heavy:', *sorted({'keras', 'tensorflow', 'jax', 'torch'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=os.environ, check=True
    )
    assert done.stdout.rstrip().endswith("heavy:")
