"""Bytes of a transformer on one of many devices: each term by hand."""

import json

import pytest

from deepseek_hpf.cli.main import run
from deepseek_hpf.errors import ConfigError
from deepseek_hpf.memory.transformer import FORMS, PRESETS, Layout, Transformer, per_device, preset

pytestmark = pytest.mark.pure
GPT3 = PRESETS["gpt3-175b"]


def test_parameters_are_those_of_the_papers():
    assert GPT3.parameters / 1e9 == pytest.approx(174.6, abs=0.05)
    assert PRESETS["gpt2-xl"].parameters == 1_557_611_200  # as GPT-2's own checkpoint


def test_sixteen_bits_keep_what_the_paper_says():
    s, h, a = GPT3.length, GPT3.width, GPT3.heads
    assert GPT3.kept(3, 2) == GPT3.layers * s * 3 * h * (34 + 5 * a * s / h)
    assert GPT3.kept(1, 2, attention=False) == GPT3.layers * s * h * 34
    # In 32 bits values double, and masks do not.
    assert GPT3.kept(1, 4, attention=False) == GPT3.layers * s * h * 66


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
def test_terms_add_up_and_are_divided(form):
    layout = Layout(devices=16, tensor_parallel=4, micro_batch=2)
    found = per_device(GPT3, form, layout)
    *terms, total = found.values()
    assert total == sum(terms)
    assert found["weights"] == form.weight * GPT3.parameters / 16
    assert found["activations kept"] == GPT3.kept(2, form.value) / 4


def test_a_layout_comes_near_48_and_28():
    layout = Layout(devices=480, tensor_parallel=12, micro_batch=1)
    totals = {form.name: per_device(GPT3, form, layout)["total"] / 1e9 for form in FORMS}
    assert totals["float32"] == pytest.approx(48.1, abs=0.05)
    assert totals["bfloat16, split masters"] == pytest.approx(28.04, abs=0.05)


def hpf(*arguments):
    with pytest.raises(SystemExit) as stopped:
        run(["estimate", *arguments])
    return stopped.value.code or 0


def test_the_command_prints_every_term(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    assert hpf("--preset", "gpt3-175b", "--devices", "96", "--micro-batch", "1") == 0
    text = " ".join(capsys.readouterr().out.split())
    for words in ("7.28", "14.55", "19.93", "49.03", "12 h^2 + 13 h", "174.6 billion"):
        assert words in text
    assert hpf("--preset", "gpt3-175b", "--no-recompute-attention", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["parameters"] == GPT3.parameters
    kept = found["bytes_per_device"]["float32"]["activations kept"]
    assert kept == pytest.approx(GPT3.kept(2, 4) / 8)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Received: neither."),
        (["a:b", "--preset", "gpt3-175b"], "Received: both."),
        (["--preset", "gpt3-175"], 'Did you mean "gpt3-175b"?'),
        (["--preset", "gpt3-175b", "--devices", "12"], "a multiple of `tensor_parallel`"),
        (["--preset", "gpt3-175b", "--devices", "0"], "--devices"),
    ],
    ids=str,
)
def test_bad_arguments(arguments, message, capsys):
    assert hpf(*arguments) == 2
    assert message in " ".join(capsys.readouterr().err.replace("│", " ").split())


def test_bad_layouts():
    with pytest.raises(ConfigError, match="micro_batch"):
        Layout(devices=8, tensor_parallel=8, micro_batch=0)
    with pytest.raises(ConfigError, match="Expected one of gpt2-xl"):
        preset("gpt5")
    one = Transformer(layers=1, width=8, heads=2, length=4, vocabulary=10)
    assert one.parameters == 12 * 64 + 13 * 8 + 14 * 8 + 16
