"""Every planted conflict is found at its layer, clean models have none, what is printed helps."""

import keras
import pytest
from corpus import CLEAN, PLANTED

from deepseek_hpf import MixedPrecisionPolicy, PrecisionConfig, apply_policy, profile
from deepseek_hpf.profiler.evidence import exact_rule

BACKEND = keras.backend.backend()
# JAX compiles every operation of every model.
pytestmark = [pytest.mark.slow] if BACKEND == "jax" else []
HERE = [case for case in PLANTED if BACKEND in case.backends]


@pytest.fixture(autouse=True)
def names_from_the_start():
    """Keras numbers the layers of a process: the corpus names those of an empty one."""
    keras.utils.clear_session()


def found(model, batch):
    return profile(model, batch, ranges=False, census=False).conflicts


@pytest.mark.parametrize("case", HERE, ids=lambda case: case.name)
def test_a_planted_conflict_is_found_and_its_remedy_removes_it(case):
    model, batch = case.build(False)
    report = profile(model, batch, ranges=False, census=False)
    conflicts = report.conflicts
    at_fault = [c for c in conflicts if c.kind == case.kind]
    assert case.path in [c.path for c in at_fault], conflicts
    if not case.by_rule:
        assert (case.kind, case.path) not in [(c.kind, c.path) for c in found(*case.build(True))]
        return
    rules = [dict(c.rule) for c in at_fault if c.rule is not None]
    assert rules
    present = [exact_rule(row.path, row.policy) for row in report.layers]
    config = PrecisionConfig(policy=model.dtype_policy.name, rules=[*present, *rules])
    apply_policy(model, MixedPrecisionPolicy(config=config))
    assert case.kind not in [c.kind for c in found(model, batch)]


@pytest.mark.parametrize("name", CLEAN)
def test_a_clean_model_has_none(name):
    assert found(*CLEAN[name]()) == ()


def test_the_corpus_is_as_large_as_is_said():
    assert len(PLANTED) >= 25
    assert len({case.kind for case in PLANTED}) >= 13
    assert len(CLEAN) >= 8
