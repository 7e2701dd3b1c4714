import pytest
from rich.console import Console

from deepseek_hpf.adapters.report import OverrideReport, OverrideRow
from deepseek_hpf.adapters.undo import UndoLog
from deepseek_hpf.plan import PrecisionPlan

pytestmark = pytest.mark.pure


def row(path="a/b", before="float32", after="mixed_bfloat16", **kwargs):
    given = {"rule": None, "reason": "the policy", **kwargs}
    return OverrideRow(path=path, class_name="Dense", before=before, after=after, **given)


def report(*rows, **kwargs):
    return OverrideReport(list(rows), "mixed_bfloat16", PrecisionPlan(), **kwargs)


def test_prints_every_cell_as_it_is():
    rows = [
        row("[red]odd[/red]"),
        row("x" * 200, rule=3, reason="[/]"),
        row("attend/softmax", saved=False),
    ]
    text = str(report(*rows, optimizer="[bold]Adam", warnings=["careful"]))
    for part in ("[red]odd[/red]", "rules[3]", "[/]", "mixed_bfloat16*", "optimizer: [bold]Adam"):
        assert part in text
    assert "warning: careful" in text
    assert "apply_policy sets it again" in text
    assert text.replace("\n", "").count("x") >= 200
    narrow = Console(width=60)
    with narrow.capture() as captured:
        narrow.print(report(*rows))
    assert "policy" in captured.get()


def test_an_empty_report_prints():
    assert "layer" in str(report())


def test_rows():
    found = report(row("a"), row("b", after="float32"))
    assert [r.changed for r in found.rows] == [True, False]
    assert found.row("b").source == "default"
    assert found.row("b").with_before("float16").changed
    with pytest.raises(KeyError):
        found.row("c")
    found.revert()  # nothing was applied


class Thing:
    value = 1
    mapping: dict[str, int]

    def call(self):
        return "class"


def test_undo_in_reverse_and_only_what_is_still_there():
    thing, log = Thing(), UndoLog()
    thing.mapping = {"a": 1}
    log.set_property(thing, "value", 2)
    log.set_property(thing, "value", 3)
    log.set_on_instance(thing, "call", lambda: "first")
    log.clear_on_instance(thing, "call")
    log.set_on_instance(thing, "call", lambda: "second")
    log.set_item(thing.mapping, "a", 2)
    log.set_item(thing.mapping, "b", 2)
    log.set_item(thing.mapping, "c", 2)
    thing.mapping["c"] = 9  # by somebody else
    assert (thing.value, thing.call()) == (3, "second")
    log.undo()
    assert (thing.value, thing.call()) == (1, "class")
    assert thing.mapping == {"a": 1, "c": 9}
    log.undo()
    assert len(log) == 0


def test_undo_leaves_what_others_have_set():
    thing, log = Thing(), UndoLog()
    log.set_property(thing, "value", 2)
    log.set_on_instance(thing, "call", lambda: "ours")
    thing.value, thing.call = 7, lambda: "theirs"
    log.undo()
    assert (thing.value, thing.call()) == (7, "theirs")


def test_logs_join():
    thing, first, second = Thing(), UndoLog(), UndoLog()
    first.set_property(thing, "value", 2)
    second.set_property(thing, "value", 3)
    first.extend(second)
    second.undo()
    assert thing.value == 3
    first.undo()
    assert thing.value == 1
