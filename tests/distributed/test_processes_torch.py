"""Two processes of PyTorch that train one model: as one process, and as one in every decision."""

import numpy as np
import pytest
from loops_torch import FAULTS, STEPS, Training, batches, create_model
from processes import launch, succeeded

pytestmark = [pytest.mark.pure, pytest.mark.slow]

SIZE = 2
BEFORE, AFTER = 1, 3  # steps around the fault, which is at step 1
FAULTY = BEFORE


def train(**case):
    return {"kind": "train", "steps": AFTER, "seed": SEED, **case}


SEED = int(np.random.default_rng().integers(2**31))
CONTEXTS = [
    {"mode": "fp16", "config": {"loss_scale": {"growth_steps": 500}}},
    {"mode": "fp16", "config": {}},
]
OTHER_DTYPES = [{"mode": mode, "config": {}} for mode in ("bf16", "fp16")]
CASES = {
    "refused": {"kind": "refused", "contexts": CONTEXTS},
    "other dtype": {"kind": "refused", "contexts": OTHER_DTYPES},
    "scale": {"kind": "another_scale", "engine": "ddp", "mode": "fp16", "rank": 1, "seed": SEED},
    "alone": train(engine="no_sync", mode="fp16", coordinate=False, faults=[(FAULTY, 1, "nan")]),
}
FAULT_CASES = [
    (engine, rank, fault)
    for engine in ("ddp", "no_sync", "fsdp")
    for rank in range(SIZE)
    for fault in FAULTS
]
CASES |= {
    case: train(engine=case[0], mode="fp16", faults=[(FAULTY, case[1], case[2])])
    for case in FAULT_CASES
}
CASES |= {
    (engine, mode): train(engine=engine, mode=mode, steps=STEPS)
    for engine in ("ddp", "fsdp")
    for mode in ("fp32", "fp16")
}
# Largest difference of a weight, after 12 steps of at most 0.05 * 10 times a gradient below 1, of
# which each carries a rounding error of its dtype.
TOLERANCE = {"fp32": 1e-5, "fp16": 1e-2}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Case to the result of each rank."""
    given = {"cases": list(CASES.values())}
    ranks = succeeded(launch("worker_torch.py", SIZE, tmp_path_factory.mktemp("ranks"), given))
    return dict(zip(CASES, zip(*ranks, strict=True), strict=True))


@pytest.mark.parametrize("mode", TOLERANCE)
@pytest.mark.parametrize("engine", ["ddp", "fsdp"])
def test_they_train_as_one_process_on_the_joined_batch(results, engine, mode):
    one, other = results[engine, mode]
    assert one["weights"] == other["weights"]  # to the bit
    alone = Training(create_model(SEED), mode)
    with alone.context:
        for batch in batches(SEED):
            alone.step(*batch)
    wanted = alone.record["weights"]
    np.testing.assert_allclose(one["weights"], wanted, rtol=0, atol=TOLERANCE[mode])
    np.testing.assert_allclose(one["norm"], alone.record["norm"], rtol=20 * TOLERANCE[mode])
    moved = np.abs(np.subtract(wanted[-1], wanted[0])).max()
    assert moved > 2 * TOLERANCE[mode]
    assert one["skipped"] == other["skipped"] == 0


@pytest.mark.parametrize(("engine", "rank", "fault"), FAULT_CASES)
def test_a_fault_on_any_rank_skips_the_step_on_all(results, engine, rank, fault):
    for result in results[engine, rank, fault]:
        weights = result["weights"]
        assert weights[BEFORE] != weights[0]
        assert weights[FAULTY + 1] == weights[FAULTY]
        assert weights[AFTER] != weights[FAULTY]
        assert np.isfinite(weights).all()
        assert result["skipped"] == 1
        assert result["scale"] == [2.0**15, 2.0**15, 2.0**14, 2.0**14]
        assert not np.isfinite(result["norm"][FAULTY])
        assert np.isfinite(np.delete(result["norm"], FAULTY)).all()
    one, other = results[engine, rank, fault]
    assert (one["weights"] == other["weights"]) == (engine != "no_sync")


def test_without_coordination_a_step_within_no_sync_is_skipped_by_one_rank_only(results):
    assert [result["skipped"] for result in results["alone"]] == [0, 1]


def test_one_message_of_96_bytes_a_step(results):
    for result in results["fsdp", "fp16"]:
        assert (result["messages"], result["message_bytes"]) == (STEPS, 96)


def test_a_rank_with_another_configuration_is_refused_on_all(results):
    one, other = results["refused"]
    assert one == other
    assert "rank 1 has config.loss_scale.growth_steps=2000 (rank 0: 500)." in one


def test_a_rank_with_another_dtype_is_refused_on_all(results):
    one, other = results["other dtype"]
    assert one == other
    assert 'rank 1 has autocast.cpu="torch.float16" (rank 0: "torch.bfloat16")' in one


def test_another_scale_gives_way_to_the_leaders_aloud(results):
    one, other = results["scale"]
    assert one["scale"][1:] == other["scale"][1:] == [2.0**15] * 3
    for result in (one, other):
        assert len(result["told"]) == 1
        assert "Rank 1 disagrees with rank 0: scale.scale=64.0" in result["told"][0]
