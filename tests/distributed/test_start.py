"""A rank with another configuration is refused, on all ranks, by name."""

import pytest
from threaded_group import on_ranks

from deepseek_hpf.config import PrecisionConfig
from deepseek_hpf.distributed.fingerprint import config_values
from deepseek_hpf.distributed.group import Alone
from deepseek_hpf.distributed.start import check_alike, differences
from deepseek_hpf.errors import ConfigError

pytestmark = pytest.mark.pure

CONFIG = PrecisionConfig(
    policy="mixed_float16", rules=[{"layers": "stem*", "policy": "float32"}], clipping=None
)


def refused(configs):
    """What each rank raised; None where it did not."""

    def work(group):
        return check_alike(group, {"config": config_values(configs[group.rank])})

    return on_ranks(len(configs), work)


def test_the_same_configuration_is_let_through():
    assert refused([CONFIG, CONFIG.replace(), CONFIG]) == [None, None, None]
    check_alike(Alone(), {"config": config_values(CONFIG)})


@pytest.mark.parametrize("odd", [0, 1, 2])
@pytest.mark.parametrize(
    ("change", "path"),
    [
        ({"loss_scale": {"growth_steps": 500}}, "config.loss_scale.growth_steps"),
        ({"clipping": {"kind": "global_norm", "max_norm": 1.0}}, "config.clipping"),
        ({"policy": "mixed_bfloat16"}, "config.policy"),
        ({"rules": [{"layers": "stem*", "policy": "float16"}]}, "config.rules[0].policy"),
        ({"rules": []}, "config.rules"),
        ({"master_weights": True}, "config.master_weights"),
    ],
)
def test_another_one_is_refused_on_every_rank_and_the_difference_named(odd, change, path):
    configs = [CONFIG] * 3
    configs[odd] = CONFIG.replace(**change)
    errors = refused(configs)
    assert {type(error) for error in errors} == {ConfigError}
    assert len({str(error) for error in errors}) == 1
    said = str(errors[0])
    assert path in said
    named = {0, 1, 2} - {0} if odd == 0 else {odd}  # rank 0 is what the others are compared with
    assert all((f"rank {rank} has" in said) == (rank in named) for rank in range(3))


def test_both_values_are_named():
    (_, error) = refused([CONFIG, CONFIG.replace(loss_scale={"growth_steps": 500})])
    assert "rank 1 has config.loss_scale.growth_steps=500 (rank 0: 2000)." in str(error)


def test_many_differences_stay_readable():
    changes = {"loss_scale": {"growth_steps": 5, "max_scale": 2.0**17, "hysteresis": 2}}
    other = CONFIG.replace(kernels=False, master_weights=True, **changes)
    said = str(refused([CONFIG] + [other] * 9)[0])
    assert "and 2 more" in said
    assert "and 6 more" in said
    assert len(said) < 1000


def test_a_key_that_is_missing_and_a_type_are_differences():
    assert differences({"a": 1}, {}) == ["a=nothing (rank 0: 1)"]
    assert differences({}, {"a": None}) == ["a=null (rank 0: nothing)"]
    assert differences({"a": True}, {"a": 1}) == ["a=1 (rank 0: true)"]
    assert differences({"a": 1.0, "b": [1]}, {"a": 1, "b": (1,)}) == []
