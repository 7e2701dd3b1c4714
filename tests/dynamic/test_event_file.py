"""Event files are read as the run that they tell of, and nothing else is taken for one."""

import json
import math
import re

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from made_up_run import EVERY, Writer, names, realistic

from deepseek_hpf.dynamic.event_file import read_events
from deepseek_hpf.dynamic.event_lines import plain
from deepseek_hpf.dynamic.event_log import EventLog
from deepseek_hpf.dynamic.recorded_run import Span
from deepseek_hpf.dynamic.run_summary import summary_of
from deepseek_hpf.errors import ConfigError
from deepseek_hpf.scheduling.events import Event

pytestmark = pytest.mark.pure
text = st.text()
decisions = st.builds(
    Event,
    step=st.integers(0, 10**12),
    kind=st.sampled_from(["promote", "demote", "phase", "explore", "settle"]),
    reason=text,
    plan=st.text("0123456789abcdef", max_size=64),
    block=st.none() | text,
    scale=st.none() | st.floats(allow_nan=False),
)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "events.jsonl"


@pytest.fixture
def writer(path):
    made = Writer(path, ["a", "b"])
    made.start()
    return made


def add(path, *lines):
    with open(path, "ab") as file:
        file.writelines(line if isinstance(line, bytes) else f"{line}\n".encode() for line in lines)


def test_what_was_written_is_read(writer, path):
    writer.window(50, loss=math.inf, scale=8.0, skipped=1, epoch=2, step_seconds=0.5)
    writer.overflow(49, "a/dense", scale=16.0)
    writer.move(50, "a", "float32", "why")
    writer.log.scale(50, 16.0, "kept")
    run = read_events(path)
    (window,) = run.windows
    assert (window.loss, window.scale, window.epoch, window.gradient_norm) == (math.inf, 8.0, 2, 1)
    assert (run.overflows[0].layer, run.overflows[0].scale) == ("a/dense", 16.0)
    assert run.decisions[0].precision == {"a": "float32", "b": "base"}
    assert [line.kind for line in run.events] == ["overflow", "promote", "scale"]
    assert (run.first, run.end, run.blocks, run.notes) == (0, 50, ["a", "b"], ())


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(decisions, st.dictionaries(text, text, max_size=3))
def test_whatever_was_decided_is_read_back(path, event, precision):
    path.unlink(missing_ok=True)
    Writer(path, []).start()
    log = EventLog(path)
    log.event(event, precision)
    log.close()
    (found,) = read_events(path).decisions
    assert Event(**found.model_dump(exclude={"precision"})) == event
    assert found.precision == precision


def test_a_file_of_a_run_that_has_just_begun(writer, path):
    run = read_events(path)
    assert (run.end, run.events, run.spans("a")) == (0, [], [])
    summary = summary_of(run)
    assert (summary.steps, summary.switches, summary.plans, summary.seconds) == (0, 0, 1, None)


def test_a_broken_last_line_is_passed_over_wherever_it_breaks(writer, path):
    writer.window(50, loss=1.0)
    whole = path.read_bytes()
    begun = len(whole.splitlines(keepends=True)[0])
    for end in range(begun, len(whole) - 1):
        path.write_bytes(whole[:end])
        assert read_events(path).windows == []
    path.write_bytes(whole[:-1])  # all but the line's end: the line is whole
    assert len(read_events(path).windows) == 1


@pytest.mark.parametrize("text", ["", "\n\n", '{"kind": "sta'])
def test_an_empty_file_is_no_run(path, text):
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"events\.jsonl: expected events.*has the run begun"):
        read_events(path)


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("import keras", 'expected an event, as a JSON object. Received: "import keras".'),
        (b"\xff\xfe\n", "expected an event, as a JSON object. Received:"),
        ("[" * 100_000, "expected an event, as a JSON object. Received:"),
        ("[1]", 'expected an event, a JSON object with a "kind". Received: "[1]".'),
        ('{"step": 1}', 'expected an event, a JSON object with a "kind"'),
        ('{"kind": 3}', 'expected an event, a JSON object with a "kind"'),
        ('{"kind": "window"}', "step: this key is needed here, and is missing."),
        ('{"kind": "window", "step": "7"}', 'step: expected an integer. Received: step="7".'),
        ('{"kind": "window", "step": 1.5}', "step: expected an integer"),
        ('{"kind": "window", "step": -1}', "step: expected a number of at least 0"),
        ('{"kind": "window", "step": 1, "loss": "nan"}', "loss: expected a number or null"),
        ('{"kind": "scale", "step": 1}', "scale: this key is needed here"),
        (
            '{"kind": "demote", "step": 1, "reason": "r", "precision": {"a": 2}}',
            "precision.a: expected a string. Received: a=2.",
        ),
    ],
)
def test_what_is_no_event_is_refused_with_its_line(writer, path, line, told):
    add(path, line)
    writer.window(50)
    with pytest.raises(ConfigError) as caught:
        read_events(path)
    assert re.match(r".*events\.jsonl, line 2: ", str(caught.value))
    assert told in str(caught.value)
    assert len(str(caught.value)) < 400


def test_an_event_before_the_start_is_refused(path):
    add(path, '{"kind": "window", "step": 1}')
    with pytest.raises(ConfigError, match=r'line 1: expected the kind "start" first.*"window"'):
        read_events(path)


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    for name in ("missing.jsonl", "", "nul\0l"):
        with pytest.raises(ConfigError, match="cannot be read"):
            read_events(tmp_path / name)


def test_kinds_and_keys_of_later_versions_are_passed_over_with_one_note(writer, path):
    for number in range(7):
        add(path, f'{{"kind": "new{number}", "whatever": []}}')
    add(path, '{"kind": "new0"}', '{"kind": "window", "step": 50, "temperature": 3}')
    run = read_events(path)
    assert len(run.windows) == 1
    (note,) = run.notes
    assert 'passed over: 8 ("new0", "new1", ' in note


def test_a_resumed_run_reads_as_if_it_had_never_stopped(path):
    def run_steps(writer, steps):
        for step in steps:
            if step == 150:
                writer.overflow(148, "a/dense")
                writer.move(step, "a", "float32")
            writer.window(step, loss=1.0 / step)

    whole = Writer(path, ["a", "b"])
    whole.start()
    run_steps(whole, range(50, 301, 50))
    expected = [line for line in read_events(path).lines if line.kind != "start"]
    for resumed_at in range(0, 251, 50):
        path.unlink()
        writer = Writer(path, ["a", "b"])
        writer.start()
        run_steps(writer, range(50, 251, 50))
        add(path, b'{"kind": "wind')  # killed
        again = Writer(path, ["a", "b"])
        if resumed_at > 150:
            again.precision["a"] = "float32"
        again.start(resumed_at, resumed=True)
        run_steps(again, range(resumed_at + 50, 301, 50) if resumed_at else range(50, 301, 50))
        if resumed_at == 150:  # the checkpoint was before the decision, which is taken again
            again.move(150, "a", "float32")
        found = read_events(path)
        lines = [line for line in found.lines if line.kind != "start"]
        assert sorted(lines, key=repr) == sorted(expected, key=repr)
        assert summary_of(found).resumes == int(resumed_at > 0)


def test_a_decision_at_the_step_of_the_checkpoint_stands_if_the_run_goes_on_with_it(writer, path):
    writer.move(100, "a", "float32")
    writer.window(100)
    writer.start(100, resumed=True)
    assert len(read_events(path).decisions) == 1
    writer.precision["a"] = "base"
    writer.start(100, resumed=True)
    run = read_events(path)
    assert run.decisions == []
    assert [window.step for window in run.windows] == [100]
    writer.window(100, loss=7.0)  # read again
    assert [window.loss for window in read_events(path).windows] == [7.0]


def test_a_loss_scale_set_at_the_step_of_the_checkpoint_is_told_once(writer, path):
    writer.log.scale(100, 8.0, "kept")
    writer.overflow(100, "a/dense")  # of the step after the checkpoint, which is run again
    writer.start(100, resumed=True)
    assert [line.kind for line in read_events(path).events] == ["scale", "start"]
    writer.log.scale(100, 16.0, "kept")
    _, scale = read_events(path).events
    assert scale.scale == 16.0


def test_a_run_from_its_begin_supersedes_the_one_before(writer, path):
    writer.window(50)
    writer.move(50, "a", "float32")
    Writer(path, ["c"]).start()
    run = read_events(path)
    assert (len(run.lines), run.blocks) == (1, ["c"])


def test_spans_follow_the_decisions(writer, path):
    writer.move(100, "a", "critical")
    writer.move(100, "b", "float32")
    writer.window(150)
    writer.move(200, "a", "float32")
    writer.move(300, "a", "base")
    writer.move(300, "a", "float32")  # one look, of which the last word counts
    writer.window(400)
    run = read_events(path)
    assert run.spans("a") == [
        Span("base", 0, 100),
        Span("critical", 100, 200),
        Span("float32", 200, 400),
    ]
    assert run.spans("b") == [Span("base", 0, 100), Span("float32", 100, 400)]
    assert summary_of(run).switches == 2
    assert summary_of(run).plans == 3


def test_a_part_of_a_run_starts_in_the_precision_that_holds_there(writer, path):
    writer.window(100)
    writer.overflow(150, "a/dense")
    writer.move(151, "a", "float32")
    writer.window(200)
    writer.start(250, resumed=True)
    writer.window(300)
    writer.move(300, "a", "base")
    run = read_events(path)
    assert run.between(None, None) is run
    assert run.between(0, 10**9).lines == run.lines
    part = run.between(151, 300)
    assert part.starts[0].precision["a"] == "float32"
    assert (part.first, part.end, len(part.starts)) == (151, 300, 2)
    assert [line.kind for line in part.lines] == [
        "start", "promote", "window", "start", "window", "demote",
    ]  # fmt: skip
    early = run.between(None, 151)
    assert [line.kind for line in early.lines] == ["start", "window", "overflow"]
    assert early.spans("a") == [Span("base", 0, 151)]
    for first, end in ((300, None), (None, 0), (200, 200), (10**9, None)):
        with pytest.raises(ConfigError, match=r"steps, which are 0 to 300\. Received"):
            run.between(first, end)


def test_a_part_without_lines_has_its_steps(writer, path):
    writer.window(1000)
    part = read_events(path).between(100, 200)
    assert (part.first, part.end) == (100, 200)
    assert part.spans("a") == [Span("base", 100, 200)]


def test_times_are_of_the_windows_that_hold_the_steps(writer, path):
    writer.window(100, steps=100, step_seconds=1.0)
    writer.move(150, "a", "float32")
    writer.window(200, steps=100, step_seconds=3.0)
    writer.window(300, steps=100)  # not timed
    stays = summary_of(read_events(path)).stays
    assert stays["a"]["base"] == (150, pytest.approx(250.0))
    assert stays["a"]["float32"] == (150, pytest.approx(150.0))
    assert stays["b"]["base"] == (300, pytest.approx(400.0))
    assert summary_of(read_events(path)).seconds == pytest.approx(400.0)


def test_stays_add_up(path):
    run = read_events(realistic(path, blocks=int(np.random.default_rng().integers(1, 9))))
    summary = summary_of(run)
    assert summary.steps == 3000
    assert summary.resumes == 1
    for levels in summary.stays.values():
        assert sum(stay.steps for stay in levels.values()) == 3000
        assert sum(stay.seconds for stay in levels.values()) == pytest.approx(summary.seconds)
    json.dumps(plain(summary.to_dict()), allow_nan=False)


def test_skipped_steps_that_no_window_has_read_count(writer, path):
    writer.window(50, skipped=2)
    writer.overflow(49, "a")
    writer.overflow(50, None, cause="data")
    assert summary_of(read_events(path)).skipped == 3
    assert read_events(path).end == 51


def test_many_lines_are_read_at_once(path):
    writer = Writer(path, names(2))
    writer.start()
    for step in range(EVERY, 20_000 * EVERY + 1, EVERY):
        writer.window(step, loss=1.0)
    assert len(read_events(path).windows) == 20_000
