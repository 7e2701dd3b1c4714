"""The peak memory of a process is its own, and not its parent's."""

import subprocess
import sys

import pytest

from deepseek_hpf.memory import process_memory
from deepseek_hpf.memory.process_memory import peak_in_status, peak_memory

pytestmark = pytest.mark.pure


def test_the_line_of_linux():
    assert peak_in_status("Name:\tx\nVmHWM:\t   1234 kB\nVmRSS:\t 1 kB\n") == 1234 * 1024
    assert peak_in_status("Name:\tx\n") is None
    assert peak_in_status("VmHWM:\n") is None


def test_the_peak_grows_with_what_is_held_and_is_not_inherited():
    before = peak_memory()
    held = bytearray(b"x" * 200_000_000)
    assert peak_memory() - before > 100_000_000 or before > 300_000_000
    code = "from deepseek_hpf.memory.process_memory import peak_memory; print(peak_memory())"
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert 2**20 < int(child.stdout) < 150_000_000
    assert len(held) == 200_000_000


def test_other_systems_are_asked_differently(monkeypatch):
    def missing(*arguments, **options):
        raise FileNotFoundError

    monkeypatch.setattr(process_memory.Path, "read_text", missing)
    assert peak_memory() > 2**20
    monkeypatch.setitem(sys.modules, "resource", None)
    assert peak_memory() is None
