"""`hpf schema`."""

import json

import pytest

from deepseek_hpf.cli.main import run
from deepseek_hpf.config import PrecisionConfig

pytestmark = pytest.mark.pure


def test_prints_and_writes_the_schema(tmp_path, capsys):
    with pytest.raises(SystemExit, match="0"):
        run(["schema"])
    printed = capsys.readouterr().out
    assert json.loads(printed) == PrecisionConfig.json_schema()
    with pytest.raises(SystemExit, match="0"):
        run(["schema", "-o", str(tmp_path / "s.json")])
    assert (tmp_path / "s.json").read_text(encoding="utf-8") == printed
    assert capsys.readouterr().out == ""


def test_a_place_that_cannot_be_written_is_one_line(tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        run(["schema", "-o", str(tmp_path / "missing" / "s.json")])
    assert capsys.readouterr().err.endswith("s.json'\n")
