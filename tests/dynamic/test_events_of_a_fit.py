"""`hpf events` of what a `fit` under dynamic precision has written: the same blocks and reasons."""

import html
import json

import pytest
from test_planted_faults import Fragile, config, create_model, data, events_of, fit, host, of_kind

from deepseek_hpf.callbacks import DynamicPrecision
from deepseek_hpf.cli.main import run


def hpf_events(*arguments):
    with pytest.raises(SystemExit) as caught:
        run(["events", *map(str, arguments)])
    assert not caught.value.code


@pytest.mark.slow
def test_the_timeline_of_a_fit(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "400")
    file, png, page = (tmp_path / f"run.{ending}" for ending in ("jsonl", "png", "html"))
    x, y = data(steps=15, fault=6)
    model = create_model(Fragile(name="fragile"))
    told = events_of(fit(model, x, y, DynamicPrecision(config(), events=file)))
    hpf_events(file, "-o", png, "-o", page)
    shown = capsys.readouterr().out
    (promotion,) = of_kind(told, "promote")
    assert (promotion["step"], promotion["block"]) == (7, "fragile")
    written = page.read_text(encoding="utf-8")
    for event in told:
        assert event["reason"] in " ".join(shown.split())
        assert event["reason"] in html.unescape(written)
    assert "fragile" in written
    assert png.read_bytes().startswith(b"\x89PNG")
    hpf_events(file, "--json")
    found = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert (found["model"], found["policy"]) == (model.name, "mixed_float16")
    assert (found["first_step"], found["end_step"]) == (0, 15)
    assert found["summary"]["skipped"] == host(model.optimizer.skipped_steps)
    assert [(e["kind"], e["step"], e["reason"]) for e in found["events"]] == [
        (e["kind"], e["step"], e["reason"]) for e in told
    ]
    stays = found["summary"]["stays"]["fragile"]
    assert {level: stay["steps"] for level, stay in stays.items()} == {"base": 7, "float32": 8}
    assert all(stay["seconds"] > 0.0 for stay in stays.values())
