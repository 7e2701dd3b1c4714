"""What takes longer: four processes, clipping of shards, bfloat16 messages, ranks that die."""

import numpy as np
import pytest
import torch
from loops_torch import STEPS, Training, batches, create_model
from processes import launch, succeeded

pytestmark = [pytest.mark.pure, pytest.mark.slow]

SEED = int(np.random.default_rng().integers(2**31))
SAVED_AT = 4
KEPT_STEPS = 40
CLIPPING = {  # All of them small enough to be at work in every step.
    "global_norm": {"kind": "global_norm", "max_norm": 1e-3},
    "value": {"kind": "value", "limit": 1e-4},
    "adaptive": {"kind": "adaptive", "ratio": 1e-4},
}


def train(**case):
    return {"kind": "train", "steps": STEPS, "seed": SEED, **case}


def run(size, folder, cases):
    """Name of a case to the result of each rank."""
    ranks = succeeded(launch("worker_torch.py", size, folder, {"cases": list(cases.values())}))
    return dict(zip(cases, zip(*ranks, strict=True), strict=True))


def checkpointed(folder, **changes):
    case = {"kind": "checkpointed", "engine": "ddp", "mode": "fp16", "seed": SEED, "steps": STEPS}
    return {**case, "save_at": SAVED_AT, "resume": False, "folder": str(folder), **changes}


def alone(config=None):
    training = Training(create_model(SEED), "fp32", config)
    with training.context:
        for batch in batches(SEED):
            training.step(*batch)
    return training.result()


def test_four_processes_train_as_one(tmp_path):
    wanted = alone()["weights"]
    cases = {
        "ddp": train(engine="ddp"),
        "fsdp": train(engine="fsdp"),
        "copies of shards": train(engine="fsdp", mesh=[2, 2]),
    }
    faults = {
        (name, rank): {**case, "mode": "fp16", "steps": 3, "faults": [(1, rank, "overflow")]}
        for name, case in cases.items()
        for rank in range(4)
    }
    results = run(4, tmp_path, cases | faults)
    norms = alone()["norm"]
    for name in cases:
        for result in results[name]:
            assert result["weights"] == results[name][0]["weights"]
            np.testing.assert_allclose(result["weights"], wanted, rtol=0, atol=1e-5)
            np.testing.assert_allclose(result["norm"], norms, rtol=1e-4)
    for fault in faults:
        for result in results[fault]:
            assert result["skipped"] == 1
            assert result["weights"][2] == result["weights"][1]
            assert result["scale"][-1] == 2.0**14
            assert result["weights"] == results[fault][0]["weights"]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Cases of two ranks, in one launch."""
    folder = tmp_path_factory.mktemp("results")
    cases = {
        kind: train(engine="fsdp", config={"clipping": rule}) for kind, rule in CLIPPING.items()
    }
    cases |= {
        "trained": train(engine="ddp", compress=True),
        "fault": train(engine="ddp", compress=True, steps=3, faults=[(1, 1, "nan")]),
        "kept": {"kind": "kept_of_bfloat16", "steps": KEPT_STEPS, "seed": SEED},
        "unbroken": checkpointed(folder),
    }
    return run(2, folder, cases)


@pytest.mark.parametrize("kind", CLIPPING)
def test_shards_are_clipped_as_the_whole_is(results, kind):
    wanted = alone({"clipping": CLIPPING[kind]})
    assert wanted["clipped"] == STEPS
    for result in results[kind]:
        np.testing.assert_allclose(result["weights"], wanted["weights"], rtol=0, atol=1e-6)
        assert result["clipped"] == STEPS


def test_bfloat16_messages_halve_the_bytes_and_train_alike(results):
    one, other = results["trained"]
    assert one["weights"] == other["weights"]
    assert 2 * one["sent"] == one["float32"] > 0
    # Each step's gradient is off by at most 2 roundings of 2**-9 each, for a step.
    np.testing.assert_allclose(one["weights"], alone()["weights"], rtol=0, atol=1e-2)


def test_bfloat16_messages_carry_a_nan_and_keep_none(results):
    for result in results["fault"]:
        assert result["skipped"] == 1
        assert np.isfinite(result["weights"]).all()
        assert np.isfinite(result["kept"]).all()
        assert result["weights"][2] == result["weights"][1]
        assert result["weights"][3] != result["weights"][2]


def test_all_that_bfloat16_takes_away_arrives_later(results):
    one, other = results["kept"]
    assert one["arrived"] == other["arrived"]
    shares = torch.tensor([one["wanted"], other["wanted"]]) / 2
    mean = shares.sum(0).double().numpy()
    kept = np.add(one["kept"], other["kept"])
    # Everything that has not arrived is kept; float32 additions round by 2**-24 of a gradient.
    largest = 2 * float(shares.abs().max())
    atol = KEPT_STEPS * largest * 2**-21
    np.testing.assert_allclose(one["arrived"] + kept, KEPT_STEPS * mean, rtol=0, atol=atol)
    # What is kept is of one step, however many there were; without feedback it would add up.
    assert np.abs(kept).max() <= largest * 2**-7
    without = shares.bfloat16().float().sum(0).bfloat16().double().numpy()
    assert np.linalg.norm(KEPT_STEPS * (without - mean)) > 4 * np.linalg.norm(kept)


def test_a_killed_rank_ends_the_others_and_the_run_resumes_with_the_same_bits(results, tmp_path):
    for rank in (0, 1):
        died = checkpointed(tmp_path, dies=[7, rank])
        given = {"cases": [died], "timeout": 60}
        outcomes = launch("worker_torch.py", 2, tmp_path / f"died{rank}", given)
        assert outcomes[rank].killed
        survivor = outcomes[1 - rank]
        assert survivor.code != 0
        assert "PrecisionError: Another process of the training has ended" in survivor.output
        assert "from the last checkpoint" in survivor.output

    resumed = checkpointed(tmp_path, resume=True)
    again = succeeded(launch("worker_torch.py", 2, tmp_path / "again", {"cases": [resumed]}))
    for (result,), wanted in zip(again, results["unbroken"], strict=True):
        count = STEPS - SAVED_AT
        assert result["weights"][-count:] == wanted["weights"][-count:]
        assert result["scale"][-count:] == wanted["scale"][-count:]
        assert result["context"] == wanted["context"]
        assert result["skipped"] == 1


def test_a_silent_rank_ends_the_others_after_the_groups_timeout(tmp_path):
    given = {"cases": [checkpointed(tmp_path, sleeps=[2, 1])], "timeout": 5}
    outcomes = launch("worker_torch.py", 2, tmp_path / "ranks", given, wait_for=[0])
    assert outcomes[0].code != 0
    said = outcomes[0].output
    assert "PrecisionError: Another process of the training has ended, or did not answer" in said
