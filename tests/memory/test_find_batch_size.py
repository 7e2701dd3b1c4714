"""The batch that fits, by trials in other processes; the model here is only read."""

import json
import sys

import keras
import numpy as np
import pytest

from deepseek_hpf import apply_policy
from deepseek_hpf.bench.other_models import PositionEmbedding, mlp
from deepseek_hpf.errors import ConfigError, PrecisionError
from deepseek_hpf.memory import BatchSizeResult, find_batch_size
from deepseek_hpf.memory.batch_size_result import BatchTrial
from deepseek_hpf.memory.finding import _best
from deepseek_hpf.memory.memory_estimate import MemoryEstimate
from deepseek_hpf.memory.model_source import source_of
from deepseek_hpf.memory.policy_trials import PolicyTrials
from deepseek_hpf.memory.rows import rows_of
from deepseek_hpf.memory.step_trial import StepTrial
from deepseek_hpf.memory.trial_process import DoesNotFitError
from deepseek_hpf.memory.trial_worker import is_want_of_memory

MIB = 2**20


def small():
    model = keras.Sequential([keras.Input((16,)), keras.layers.Dense(4, name="head")])
    model.compile(keras.optimizers.Adam(0.02), "mse")
    return model


class MadeUp:
    """A process whose steps take so many bytes a row, and slow down when batches grow."""

    def __init__(self, fixed=100, each=10, slower_from=10**9):
        self.fixed, self.each, self.slower_from = fixed, each, slower_from

    def started(self, job, limit):
        outer = self

        class Context:
            def __enter__(self):
                return self

            def __exit__(self, *_):
                return None

            def ask(self, kind, rows):
                peak = outer.fixed + outer.each * rows
                if kind == "estimate":
                    # Half of what it takes: estimates may be wrong.
                    return MemoryEstimate(
                        model="m", backend="b", policy="p", batch_size=rows, parameters=0, slots=0,
                        batch=0, gradients=0, kept=None, temporary=peak // 2, origin="made up",
                    )  # fmt: skip
                if peak > limit:
                    raise DoesNotFitError("it needs more than it may have", peak)
                seconds = 1.0 + rows / 100 if rows < outer.slower_from else rows / 20
                return StepTrial(rows, seconds, peak, peak, peak)

        return Context()


@pytest.fixture
def made_up(monkeypatch):
    def use(**options):
        from deepseek_hpf.memory import policy_trials

        process = MadeUp(**options)
        monkeypatch.setattr(policy_trials.TrialProcess, "started", process.started)

    return use


def tried(objective, limit=10_000, first=8, ceiling=4096, until=float("inf")):
    trials = PolicyTrials(None, "float32", limit, until, lambda text: None)
    trials.run(objective, first, ceiling)
    return trials


@pytest.mark.pure
def test_the_largest_that_fits_is_found_though_the_estimate_is_wrong(made_up):
    made_up(fixed=0, each=20)  # the estimate promises 1000 rows
    found = tried("fits").trials
    assert max(each.batch_size for each in found if each.fits) == 496
    assert [each.batch_size for each in found] == sorted(each.batch_size for each in found)
    assert all(each.estimate for each in found)
    assert {each.note for each in found if not each.fits} == {"it needs more than it may have"}


@pytest.mark.pure
def test_the_fastest_is_looked_for_until_larger_ones_gain_nothing(made_up):
    made_up(each=0)
    assert [each.batch_size for each in tried("throughput").trials][-1] == 4096
    made_up(each=0, slower_from=100)
    found = tried("throughput").trials
    assert [each.batch_size for each in found] == [8, 16, 32, 64, 128, 256]
    assert _best(found, "throughput", 10_000).batch_size == 64
    made_up()
    assert max(each.batch_size for each in tried("throughput").trials if each.fits) == 512


@pytest.mark.pure
def test_below_the_first_multiple_powers_of_two_are_tried(made_up):
    for objective in ("fits", "throughput"):
        made_up(each=2000)
        found = tried(objective).trials
        assert max(each.batch_size for each in found if each.fits) == 4


@pytest.mark.pure
def test_not_even_one_row_says_what_was_needed(made_up):
    made_up(fixed=20_000)
    found = tried("fits").trials
    assert found[0].batch_size == 1
    with pytest.raises(PrecisionError, match=r"at least 19\.5 KiB with 1 rows under float32"):
        _best(found, "fits", 10_000)


@pytest.mark.pure
def test_where_nothing_smaller_was_tried_more_time_is_a_way_out():
    trial = BatchTrial(policy="float32", batch_size=376, fits=False, peak=20_000, note="too much")
    with pytest.raises(PrecisionError, match=r"a batch to fit .* time to try smaller ones"):
        _best([trial], "fits", 10_000)


@pytest.mark.pure
def test_the_time_is_kept_and_the_first_trial_completed(made_up):
    made_up()
    found = tried("throughput", until=0.0)
    assert len(found.trials) == 1
    assert "the time was over" in found.notes[0]


@pytest.mark.pure
def test_the_result_prints_and_is_json(tmp_path):
    trials = (
        BatchTrial(policy="float32", batch_size=8, fits=True, seconds=0.5, peak=3 * MIB),
        BatchTrial(policy="mixed_bfloat16", batch_size=16, fits=False, note="too large"),
    )
    found = BatchSizeResult(
        best=trials[0], trials=trials, objective="fits", limit=4 * MIB, backend="jax"
    )
    assert (found.batch_size, found.policy) == (8, "float32")
    text = str(found)
    for words in ("best", "does not fit", "3.0 MiB", "16.0", "4.0 MiB"):
        assert words in text
    found.to_json(tmp_path / "a.json")
    read = json.loads((tmp_path / "a.json").read_text())
    assert read["trials"][0]["throughput"] == 16.0
    assert read["trials"][1]["seconds"] is None


def test_rows_are_repeated():
    x, y = rows_of((np.arange(3), np.arange(3) * 2), 7)
    assert x.tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert (y == 2 * x).all()


def test_a_model_travels_as_its_configuration():
    inputs = keras.Input((8,))
    x = PositionEmbedding(4)(keras.layers.Reshape((4, 2))(inputs))
    model = keras.Model(inputs, keras.layers.Dense(2, dtype="mixed_bfloat16")(x))
    model.compile(keras.optimizers.SGD(0.125, momentum=0.5), keras.losses.Huber(delta=2.0))
    made = source_of(model).make()
    assert type(made.layers[2]) is PositionEmbedding
    assert made.layers[-1].dtype_policy.name == "mixed_bfloat16"
    assert float(made.optimizer.momentum) == 0.5
    assert made.weights[0] is not model.weights[0]


def test_what_cannot_travel_says_so():
    with pytest.raises(ConfigError, match="a function of a module"):
        find_batch_size(lambda: small(), policies=["float32"])
    with pytest.raises(ConfigError, match="compiled"):
        source_of(keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)]))
    with pytest.raises(TypeError, match="a function that returns one"):
        source_of("model")
    applied = small()
    apply_policy(applied, "mixed_bfloat16")
    with pytest.raises(ConfigError, match="revert"):
        source_of(applied)
    lossy = small()
    lossy.compile("sgd", lambda y, z: keras.ops.mean((y - z) ** 2))
    with pytest.raises(ConfigError, match="a function of a module"):
        source_of(lossy)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"objective": "fast"}, "fits, throughput"),
        ({"memory": 0}, "memory"),
        ({"memory": True}, "memory"),
        ({"ceiling": 0}, "ceiling"),
        ({"multiple_of": 1.5}, "multiple_of"),
        ({"time_budget": -1}, "time_budget"),
        ({"policies": []}, "policies"),
        ({"policies": ["bf16"]}, "policy"),
        ({"sample": (np.ones((2, 2)),)}, "batch"),
    ],
    ids=str,
)
def test_bad_arguments(options, message):
    with pytest.raises(ConfigError, match=message):
        find_batch_size(small(), **options)


@pytest.mark.pure
def test_want_of_memory_is_told_from_other_failures():
    assert is_want_of_memory(RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 7 bytes"))
    assert is_want_of_memory(
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")
    )
    assert not is_want_of_memory(RuntimeError("INVALID_ARGUMENT: shapes"))


@pytest.mark.slow
def test_an_object_is_tried_elsewhere_and_left_as_it_was():
    model = small()
    x, y = np.ones((5, 16), "float32"), np.ones((5, 4), "float32")
    model.train_on_batch(x, y)
    variables = [*model.variables, *model.optimizer.variables]
    before = [np.array(keras.ops.convert_to_numpy(v)) for v in variables]
    found = find_batch_size(
        model, (x, y), policies=["float32", "mixed_bfloat16"], ceiling=20, memory=2**31
    )
    assert found.batch_size == 16
    assert {each.policy for each in found.trials} == {"float32", "mixed_bfloat16"}
    assert all(each.fits and each.throughput > 0 for each in found.trials)
    after = [np.array(keras.ops.convert_to_numpy(v)) for v in variables]
    assert all(map(np.array_equal, before, after))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="memory is watched in /proc")
def test_a_process_that_takes_too_much_is_ended():
    # Weights, gradients and moments alone are 4 * 11.6 MB.
    with pytest.raises(PrecisionError, match="Expected a batch of one row to fit into 20"):
        find_batch_size(mlp, policies=["float32"], ceiling=8, memory=20 * MIB)


@pytest.mark.slow
def test_a_model_that_fails_for_another_reason_is_an_error():
    with pytest.raises(ConfigError, match=r"[Ee]xpected"):
        find_batch_size(mlp, (np.ones((2, 3)), np.ones((2, 3))), policies=["float32"], ceiling=8)
