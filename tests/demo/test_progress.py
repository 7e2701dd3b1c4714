"""Bars on a terminal, lines where there is none."""

import io

import pytest
from made_up import result, start
from rich.console import Console

from deepseek_hpf.demo.progress import ProgressDisplay
from deepseek_hpf.demo.records import StepDone

pytestmark = pytest.mark.pure


def play(*, is_terminal):
    text = io.StringIO()
    console = Console(file=text, force_terminal=is_terminal, width=120)
    with ProgressDisplay(console, epochs=3) as display:
        for run, policy in enumerate(("float32", "[red]float32")):
            display.event(run, start(policy, reason="[why] not"))
            display.event(run, StepDone(epoch=0, step=0, loss=0.25))
            display.event(run, result(policy, 0.1).epochs[1])
            display.log(run, "WARNING: [a] line")
    return text.getvalue()


@pytest.mark.parametrize("is_terminal", [False, True])
def test_progress(is_terminal):
    shown = play(is_terminal=is_terminal)
    for text in ("[why] not", "WARNING: [a] line", "[red]float32", "93.00%"):
        assert text in shown
    assert ("epoch 2/3, loss 0.5000, test accuracy 93.00%" in shown) is not is_terminal
    assert ("1/9" in shown) is is_terminal
