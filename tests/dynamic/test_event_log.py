"""The log of a run: lines that outlive a kill, TensorBoard, Python's log, and the history."""

import json
import logging
import math
import signal
import subprocess
import sys

import numpy as np
import pytest

from deepseek_hpf.dynamic.event_log import EventLog
from deepseek_hpf.errors import ConfigError
from deepseek_hpf.scheduling.events import Event
from deepseek_hpf.scheduling.telemetry import Overflow, Telemetry

pytestmark = pytest.mark.pure
BLOCKS = {"stem": ["stem/conv", "stem/norm"], "hëad": ["hëad"]}
LOW = dict.fromkeys(BLOCKS, "base")


def begin(log, step=0, precision=LOW, **more):
    log.start(
        step,
        model="net",
        policy="mixed_float16",
        controller="threshold",
        blocks=BLOCKS,
        precision=precision,
        **more,
    )


def promotion(step=3, **changes):
    given = {"step": step, "kind": "promote", "reason": "stem overflowed", "plan": "9f"}
    return Event(**{**given, "block": "stem", **changes})


def lines(path):
    return [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]


def test_every_kind_has_its_line(tmp_path):
    path = tmp_path / "new" / "folder" / "events.jsonl"
    log = EventLog(path)
    begin(log)
    log.window(Telemetry(step=2, steps=2, epoch=1, skipped=1, scale=8.0, loss=0.5), 1.25)
    log.overflow(Overflow(step=1, cause="activation", layer="stem/conv", scale=16.0), "too large")
    log.event(promotion(scale=16.0), {**LOW, "stem": "float32"})
    log.scale(3, 16.0, "the block was promoted instead")
    log.close()
    start, window, overflow, event, scale = lines(path)
    assert start == {
        "kind": "start",
        "step": 0,
        "model": "net",
        "policy": "mixed_float16",
        "controller": "threshold",
        "blocks": BLOCKS,
        "precision": LOW,
    }
    figures = {"loss": 0.5, "scale": 8.0, "gradient_norm": 1.25, "skipped": 1}
    assert window == {"kind": "window", "step": 2, "steps": 2, "epoch": 1, **figures}
    assert overflow == {
        "kind": "overflow",
        "step": 1,
        "cause": "activation",
        "layer": "stem/conv",
        "scale": 16.0,
        "reason": "too large",
    }
    assert event == {
        "kind": "promote",
        "step": 3,
        "reason": "stem overflowed",
        "plan": "9f",
        "block": "stem",
        "scale": 16.0,
        "precision": {"stem": "float32", "hëad": "base"},
    }
    assert scale["scale"] == 16.0


def test_the_history_takes_each_decision_once(tmp_path):
    log = EventLog(None)
    begin(log)
    log.window(Telemetry(step=2, steps=2))
    log.overflow(Overflow(step=1, cause="data"), "sample 3")
    log.event(promotion(), LOW)
    log.scale(3, 2.0, "why")
    assert [entry["kind"] for entry in log.recent()] == ["overflow", "promote", "scale"]
    assert log.recent() == []
    log.event(promotion(step=9), LOW)
    assert [entry["step"] for entry in log.recent()] == [9]


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (math.nan, "NaN"),
        (math.inf, "Infinity"),
        (-math.inf, "-Infinity"),
        (np.float32("nan"), "NaN"),
        (np.float32(0.5), 0.5),
        (np.int64(3), 3),
        (5e-324, 5e-324),
        (-0.0, -0.0),
    ],
)
def test_numbers_are_json_whatever_they_are(tmp_path, value, written):
    log = EventLog(tmp_path / "e")
    log.window(Telemetry(step=1, steps=1, loss=value), gradient_norm=value)
    log.close()
    found = json.loads((tmp_path / "e").read_text(), parse_constant=pytest.fail)
    assert found["loss"] == found["gradient_norm"] == written


def test_odd_names_are_text(tmp_path):
    names = ["a\nb", "half \udc80 of a pair", "\u2028", '"}', "名"]
    log = EventLog(tmp_path / "e")
    for name in names:
        log.event(promotion(block=name), {name: "base"})
    log.close()
    written = [name.replace("\udc80", "?") for name in names]
    assert [line["block"] for line in lines(tmp_path / "e")] == written


def test_a_resumed_run_appends_and_a_broken_last_line_goes(tmp_path):
    path = tmp_path / "events.jsonl"
    log = EventLog(path)
    begin(log)
    log.event(promotion(), LOW)
    log.close()
    whole = path.read_bytes()
    for cut in range(1, 40):
        path.write_bytes(whole[:-cut])
        log = EventLog(path)
        begin(log, 2, resumed=True)
        log.close()
        assert [line["kind"] for line in lines(path)] == ["start", "start"]
        assert lines(path)[1]["resumed"] is True


@pytest.mark.parametrize("kept", range(len(b'{"kind": "start"') + 2))
def test_a_file_that_holds_only_a_broken_line_begins_anew(tmp_path, kept):
    path = tmp_path / "e"
    path.write_bytes(b'{"kind": "start", "step'[:kept])
    log = EventLog(path)
    begin(log)
    log.close()
    assert len(lines(path)) == 1


def test_the_broken_line_may_be_long(tmp_path):
    path = tmp_path / "e"
    begun = b'{"kind": "start"}\n'
    path.write_bytes(begun + b"x" * 200_000)
    EventLog(path).close()
    assert path.read_bytes() == begun


@pytest.mark.parametrize("content", [b"import keras\n", b"{}\n", b"\xff\xfe\x00", b'{"kind": 1}'])
def test_a_file_of_something_else_is_left_as_it_is(tmp_path, content):
    path = tmp_path / "train.py"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"train\.py: expected no file.*Received.*another path"):
        EventLog(path)
    assert path.read_bytes() == content


@pytest.mark.parametrize("place", ["", "file/events.jsonl", "nul\0l"])
def test_a_place_that_cannot_be_written_is_refused_at_once(tmp_path, place):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="expected a file that can be written"):
        EventLog(f"{tmp_path}/{place}")


FULL = """
import logging, resource, sys
from deepseek_hpf.dynamic.event_log import EventLog
logging.basicConfig()
log = EventLog(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (500, 500))
for step in range(100):
    log.scale(step, 1.0, "a reason")
print(len(log.recent()))
"""


def test_a_full_disk_ends_the_file_but_not_the_run(tmp_path):
    pytest.importorskip("resource", reason="bounds of a process are POSIX's")
    path = tmp_path / "e"
    command = [sys.executable, "-c", FULL, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "100\n"
    assert done.stderr.count("\n") == 1
    assert "no more is written to it" in done.stderr
    assert path.stat().st_size == 500


KILLED = """
import os, signal, sys
from deepseek_hpf.dynamic.event_log import EventLog
log = EventLog(sys.argv[1])
for step in range(100):
    log.scale(step, 1.0, "a reason")
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_was_written_outlives_a_kill(tmp_path):
    path = tmp_path / "e"
    done = subprocess.run([sys.executable, "-c", KILLED, str(path)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert [line["step"] for line in lines(path)] == list(range(100))


def test_decisions_are_one_line_each_in_pythons_log(caplog):
    caplog.set_level(logging.INFO, "deepseek_hpf")
    log = EventLog(None)
    begin(log)
    begin(log, 5, resumed=True)
    log.window(Telemetry(step=2, steps=2, loss=1.0))
    log.overflow(Overflow(step=7, cause="data"), "bad data in sample 3")
    log.event(promotion(8), LOW)
    log.event(promotion(9, kind="phase", block=None, reason="epoch 1"), LOW)
    log.scale(10, 1024.0, "kept")
    assert [record.getMessage() for record in caplog.records] == [
        "Step 0: net starts under mixed_float16, 2 block(s), controller threshold.",
        "Step 5: net goes on under mixed_float16, 2 block(s), controller threshold.",
        "Step 7: skipped: bad data in sample 3.",
        "Step 8: promote stem: stem overflowed.",
        "Step 9: phase: epoch 1.",
        "Step 10: loss scale 1024: kept.",
    ]


def test_tensorboard_gets_curves_levels_and_reasons(tmp_path):
    loader = pytest.importorskip("tensorboard.backend.event_processing.event_file_loader")
    log = EventLog(None, str(tmp_path / "logs"))
    begin(log)
    log.window(Telemetry(step=50, steps=50, loss=math.nan, scale=8.0), 2.0)
    log.event(promotion(50), {"stem": "critical", "hëad": "mixed_bfloat16"})
    log.close()
    log.window(Telemetry(step=100, steps=50, loss=1.0))
    (file,) = (tmp_path / "logs").iterdir()
    events = list(loader.LegacyEventFileLoader(str(file)).Load())
    found = {(event.step, value.tag): value for event in events for value in event.summary.value}
    assert any(event.HasField("session_log") for event in events)
    assert math.isnan(found[50, "dynamic/loss"].simple_value)
    assert found[50, "dynamic/scale"].simple_value == 8.0
    assert found[50, "dynamic/gradient_norm"].simple_value == 2.0
    assert (50, "dynamic/step_seconds") not in found
    assert found[0, "dynamic/precision/stem"].simple_value == 0.0
    assert found[50, "dynamic/precision/stem"].simple_value == 1.0
    assert (50, "dynamic/precision/hëad") not in found
    text = found[50, "dynamic/events/text_summary"].tensor.string_val[0].decode()
    assert text == "promote stem: stem overflowed"
    assert not any(event.step == 100 for event in events)


def test_tensorboard_that_is_not_there_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "tensorboard.summary.writer.event_file_writer", None)
    with pytest.raises(ConfigError, match="'deepseek_hpf\\[tensorboard\\]'"):
        EventLog(tmp_path / "e", str(tmp_path / "logs"))
    assert not (tmp_path / "e").exists()
