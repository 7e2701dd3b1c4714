"""Every planted conflict is found at its layer, clean models have none, what is printed helps."""

import keras
import numpy as np
import pytest
from corpus import CLEAN, PLANTED

from deepseek_hpf import (
    MixedPrecisionPolicy,
    PrecisionConfig,
    PrecisionRule,
    apply_policy,
    profile,
)

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


def keys(conflicts):
    return {(conflict.kind, conflict.path) for conflict in conflicts}


@pytest.mark.parametrize("case", HERE, ids=lambda case: case.name)
def test_a_planted_conflict_is_found_and_its_remedy_removes_it(case):
    model, batch = case.build(False)
    report = profile(model, batch, ranges=False, census=False)
    conflicts = report.conflicts
    at_fault = [each for each in conflicts if (each.kind, each.path) == (case.kind, case.path)]
    assert at_fault, conflicts
    if not case.by_rule:
        assert (case.kind, case.path) not in keys(found(*case.build(True)))
        return
    (conflict,) = at_fault
    rules = [PrecisionRule(**rule) for rule in conflict.rules]
    assert rules
    config = PrecisionConfig(policy=report.policy, rules=rules)
    apply_policy(model, MixedPrecisionPolicy(config=config))
    left = keys(found(model, batch))
    assert case.kind not in {kind for kind, _ in left}
    assert left <= keys(conflicts)


@pytest.mark.parametrize("name", CLEAN)
def test_a_clean_model_has_none(name):
    assert found(*CLEAN[name]()) == ()


def test_the_corpus_is_as_large_as_is_said():
    assert len(PLANTED) >= 25
    assert len({case.kind for case in PLANTED}) >= 13
    assert len(CLEAN) >= 8


def test_casts_of_the_input_have_their_bytes():
    inputs = keras.Input((6,), name="numbers")
    model = keras.Model(inputs, keras.layers.Dense(2)(inputs))
    model.compile("sgd", "mse")
    (conflict,) = found(model, (np.ones((4, 6)), np.ones((4, 2), "float32")))
    assert (conflict.kind, conflict.bytes) == ("input_cast", 4 * 6 * (8 + 4))
