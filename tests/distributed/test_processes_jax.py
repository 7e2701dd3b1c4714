"""Two processes of Keras on JAX that train one model: as one process, and as one in decisions."""

import numpy as np
import pytest
from processes import launch, succeeded

pytestmark = [pytest.mark.backend("jax"), pytest.mark.slow, pytest.mark.timeout(1500)]

LIMIT = 600  # seconds: what fails on one process runs eagerly over both, and compiles much
SEED = int(np.random.default_rng().integers(2**31))
FAULTS = [(1, 0, "nan"), (2, 1, "overflow"), (3, 1, "nan"), (4, 0, "overflow")]


def train(**case):
    return {"kind": "train", "seed": SEED, "steps": 6, **case}


CASES = {
    "float32": train(config={"policy": "float32"}, per_fit=6),
    "faults": train(faults=FAULTS),
    "model parallel": train(distribution="model", faults=[(1, 0, "nan")], steps=3),
    "dynamic": train(
        callback="DynamicPrecision", faults=[(1, 1, "activation")], per_fit=4, steps=4
    ),
    "other config": {**train(configs=[{}, {"loss_scale": {"growth_steps": 7}}]), "kind": "raised"},
    "no distribution": {**train(distribution="none"), "kind": "raised"},
}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Case to the result of each process."""
    given = {"cases": list(CASES.values())}
    folder = tmp_path_factory.mktemp("processes")
    ranks = succeeded(launch("worker_jax.py", 2, folder, given, limit=LIMIT))
    return dict(zip(CASES, zip(*ranks, strict=True), strict=True))


@pytest.mark.parametrize("case", ["float32", "faults", "model parallel", "dynamic"])
def test_the_weights_are_equal_to_the_bit(results, case):
    one, other = results[case]
    assert one["weights"] == other["weights"]
    assert np.isfinite(one["weights"]).all()


def test_they_train_as_one_process_on_the_joined_batch(results):
    from worker_jax import train as train_here

    alone = train_here({**CASES["float32"], "distribution": "none"}, 0, 1)
    np.testing.assert_allclose(results["float32"][0]["weights"], alone["weights"], atol=1e-5)
    moved = np.abs(np.subtract(alone["weights"][-1], alone["weights"][0])).max()
    assert moved > 1e-3


def test_a_fault_on_any_process_skips_the_step_on_all(results):
    for result in results["faults"]:
        weights, history = result["weights"], result["history"]
        changed = [weights[i + 1] != weights[i] for i in range(6)]
        assert changed == [True, False, False, False, False, True]
        assert [logs["skipped_steps"] for logs in history] == [0, 1, 2, 3, 4, 4]
        assert [logs["dynamic_scale"] for logs in history] == [
            2.0**15 / 2**skips for skips in (0, 1, 2, 3, 4, 4)
        ]


def test_a_model_cut_over_the_processes_is_guarded_alike(results):
    for result in results["model parallel"]:
        assert result["weights"][2] == result["weights"][1]
        assert result["weights"][3] != result["weights"][2]
        assert result["history"][-1]["skipped_steps"] == 1


def test_the_plan_is_switched_before_the_same_step_on_all(results):
    one, other = results["dynamic"]
    assert one["history"] == other["history"]
    assert one["policies"] == other["policies"]
    events = one["history"][0]["precision_events"]
    assert [(e["kind"], e["step"]) for e in events][:2] == [("overflow", 1), ("promote", 2)]
    assert one["policies"]["stem"] == "float32"


def test_a_process_with_another_configuration_is_refused_on_all(results):
    one, other = results["other config"]
    assert one == other
    assert one[0] == "ConfigError"
    assert "rank 1 has config.loss_scale.growth_steps=7 (rank 0: 2000)." in one[1]


def test_processes_without_a_distribution_are_refused(results):
    for kind, said in results["no distribution"]:
        assert kind == "PrecisionError"
        assert "each process would train a model of its own" in said
        assert "set_distribution" in said


def test_a_killed_process_ends_the_others_and_the_run_resumes_with_the_same_bits(tmp_path):
    case = {"kind": "backed_up", "seed": SEED, "steps": 3, "faults": [(1, 1, "nan")]}

    def run(name, folder, **changes):
        given = {"cases": [{**case, "folder": str(tmp_path / folder), **changes}]}
        return launch("worker_jax.py", 2, tmp_path / name, given, limit=LIMIT)

    outcomes = run("died", "backups", dies=[1, 1, 1])
    assert outcomes[1].killed
    assert outcomes[0].code != 0
    assert "heartbeat" in outcomes[0].output  # JAX's words: task 1 is unhealthy
    resumed = succeeded(run("again", "backups"))
    unbroken = succeeded(run("unbroken", "others"))
    assert resumed == unbroken
    assert unbroken[0][0]["skipped"] == 2
