"""What was measured is read back exactly, and damage counts as absence."""

import json
import os

import pytest

from deepseek_hpf.measurement_cache import MeasurementCache

pytestmark = pytest.mark.pure

KEY = {"device": "cpu", "versions": {"keras": "3"}, "shape": (1, 2)}
VALUE = {"flops": 1.5e9, "note": "é"}


@pytest.fixture
def cache(tmp_path):
    return MeasurementCache("probes", directory=tmp_path)


def only_file(tmp_path):
    (file,) = (tmp_path / "probes").glob("*.json")
    return file


def test_what_is_put_is_there_for_equal_keys_only(cache):
    assert cache.get(KEY) is None
    cache.put(KEY, VALUE)
    assert cache.get({**KEY, "shape": [1, 2]}) == VALUE
    assert cache.get({**KEY, "device": "gpu"}) is None
    cache.put(KEY, {"flops": 2.0})
    assert cache.get(KEY) == {"flops": 2.0}


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", '{"format": 99}', '{"format": 1, "key": {}}', "[" * 100_000, "\0"],
)
def test_a_damaged_file_counts_as_absent_and_is_replaced(cache, tmp_path, text):
    cache.put(KEY, VALUE)
    only_file(tmp_path).write_text(text)
    assert cache.get(KEY) is None
    assert list(cache.entries()) == []
    cache.put(KEY, VALUE)
    assert cache.get(KEY) == VALUE


def test_a_file_of_another_key_counts_as_absent(cache, tmp_path):
    cache.put(KEY, VALUE)
    entry = json.loads(only_file(tmp_path).read_text())
    only_file(tmp_path).write_text(json.dumps({**entry, "key": {"device": "tpu"}}))
    assert cache.get(KEY) is None


def test_entries_come_newest_first(cache, tmp_path):
    for age, name in enumerate("abc"):
        cache.put({"name": name}, {"age": age})
    for file in (tmp_path / "probes").glob("*.json"):
        age = json.loads(file.read_text())["value"]["age"]
        os.utime(file, (1000 - age, 1000 - age))
    assert [value["age"] for _, value in cache.entries()] == [0, 1, 2]


def test_a_cache_that_cannot_be_written_only_warns(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    cache = MeasurementCache("probes", directory=tmp_path / "file")
    cache.put(KEY, VALUE)
    assert cache.get(KEY) is None
    assert "could not be kept" in caplog.text


def test_values_that_are_no_json_numbers_are_refused(cache):
    with pytest.raises(ValueError, match="JSON"):
        cache.put(KEY, {"flops": float("inf")})
