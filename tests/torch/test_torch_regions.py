"""Rules over modules: which dtype each computes in, and that nothing stays on the model."""

import logging

import pytest
import torch

from deepseek_hpf import ConfigError
from deepseek_hpf.torch import HybridPrecisionContext

pytestmark = pytest.mark.pure


class Block(torch.nn.Module):
    """A layer and a product of its own, and the dtypes in which they came out."""

    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(4, 4)
        self.dtypes = []

    def forward(self, inputs, *, factor=None):
        outputs = self.linear(inputs)
        if factor is not None:
            outputs = outputs * factor
        product = outputs @ outputs.transpose(0, 1)
        self.dtypes.append((outputs.dtype, product.dtype))
        return product @ outputs


class Model(torch.nn.Module):
    """Blocks in a row."""

    def __init__(self):
        super().__init__()
        self.stem = Block()
        self.body = torch.nn.Sequential(Block(), Block())
        self.head = torch.nn.Linear(4, 1)

    def forward(self, inputs):
        hidden = self.body(self.stem(inputs))
        return self.head(hidden)

    def dtypes(self):
        """What the blocks saw, and forgets it."""
        blocks = [self.stem, *self.body]
        seen = [block.dtypes.copy() for block in blocks]
        for block in blocks:
            block.dtypes.clear()
        return seen


FLOAT32, BFLOAT16, FLOAT16 = ((d, d) for d in (torch.float32, torch.bfloat16, torch.float16))


def run(rules, mode="bf16", model=None, calls=1):
    model = Model() if model is None else model
    with HybridPrecisionContext(mode, {"rules": rules}) as context:
        for _ in range(calls):
            outputs = model(torch.ones(2, 4))
            outputs.float().sum().backward()
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in model.modules())
    assert not torch.nn.modules.module._global_forward_pre_hooks
    return model, context


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        ([], [BFLOAT16, BFLOAT16, BFLOAT16]),
        ([{"layers": "stem", "policy": "float32"}], [FLOAT32, BFLOAT16, BFLOAT16]),
        ([{"layers": "body.1", "policy": "float32"}], [BFLOAT16, BFLOAT16, FLOAT32]),
        ([{"layers": "body/*", "policy": "mixed_float16"}], [BFLOAT16, FLOAT16, FLOAT16]),
        ([{"layer_type": "Block", "policy": "float32"}], [FLOAT32] * 3),
        ([{"layer_type": "Sequential", "policy": "float16"}], [BFLOAT16, FLOAT16, FLOAT16]),
        # The last rule wins; "auto" and null take back.
        (
            [
                {"layers": "*", "policy": "float32"},
                {"layers": "body.0", "policy": "mixed_float16"},
                {"layers": "stem", "policy": "auto"},
            ],
            [BFLOAT16, FLOAT16, FLOAT32],
        ),
        (
            [{"layers": "*", "policy": "float32"}, {"layers": "stem", "policy": None}],
            [BFLOAT16, FLOAT32, FLOAT32],
        ),
    ],
)
@pytest.mark.parametrize("calls", [1, 2])
def test_each_module_computes_as_its_rule_says(rules, expected, calls):
    model, _ = run(rules, calls=calls)
    assert model.dtypes() == [[seen] * calls for seen in expected]


def test_a_type_on_its_own_is_an_island():
    """The layer computes in float32, and the block around it in low precision again."""
    model, _ = run([{"layer_type": "Linear", "policy": "float32"}])
    assert model.dtypes() == [[(torch.float32, torch.bfloat16)]] * 3


def test_an_island_in_an_island():
    rules = [
        {"layers": "body", "policy": "float32"},
        {"layers": "body.0.linear", "policy": "mixed_bfloat16"},
    ]
    model, _ = run(rules)
    assert model.dtypes()[1:] == [[BFLOAT16], [FLOAT32]]


def test_the_root_itself():
    class Root(Block):
        pass

    for _ in range(2):
        root = Root()
        run([{"layer_type": "Root", "policy": "float32"}], model=root)
        assert root.dtypes == [FLOAT32]


def test_keyword_arguments_are_widened_in_an_island():
    class Holder(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.block = Block()

        def forward(self, inputs):
            low = inputs.to(torch.bfloat16)
            return self.block(inputs=low, factor=low[:1, :1])

    holder = Holder()
    run([{"layers": "block", "policy": "float32"}], model=holder)
    assert holder.block.dtypes == [FLOAT32]


def test_a_float16_region_scales_the_loss():
    model, seen = Model(), []
    config = {
        "rules": [{"layers": "head", "policy": "mixed_float16"}],
        "loss_scale": {"initial_scale": 1024},
    }
    with HybridPrecisionContext("bf16", config):
        outputs = model(torch.ones(2, 4)).float()
        outputs.register_hook(lambda gradient: seen.append(float(gradient.max())))
        outputs.sum().backward()
    assert seen == [1024.0]
    torch.testing.assert_close(model.head.bias.grad, torch.tensor([2.0]))


def test_two_models_and_a_submodule_called_alone():
    one, other = Model(), Model()
    rules = [{"layers": "stem", "policy": "float32"}]
    with HybridPrecisionContext("bf16", {"rules": rules}):
        for model in (one, other, one):
            model(torch.ones(2, 4))
        one.stem(torch.ones(2, 4))
    assert one.dtypes()[0] == [FLOAT32] * 3
    assert other.dtypes()[0] == [FLOAT32]


@pytest.mark.filterwarnings("ignore")
def test_a_compiled_model_has_the_paths_of_the_model():
    model = Model()
    compiled = torch.compile(model, backend="eager")
    rules = [{"layers": "stem", "policy": "float32"}]
    with HybridPrecisionContext("bf16", {"rules": rules}):
        outputs = compiled(torch.ones(2, 4))
    assert outputs.dtype == torch.bfloat16
    assert model.dtypes() == [[FLOAT32], [BFLOAT16], [BFLOAT16]]


def test_an_exception_within_a_region():
    model = Model()
    rules = [{"layers": "body", "policy": "float32"}]
    with HybridPrecisionContext("bf16", {"rules": rules}):
        with pytest.raises(RuntimeError):
            model.body(torch.ones(2, 3))
        model(torch.ones(2, 4))
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16
    assert model.dtypes() == [[BFLOAT16], [FLOAT32], [FLOAT32]]


def test_checkpointing_recomputes_in_the_same_dtypes():
    class Checkpointed(Model):
        def forward(self, inputs):
            hidden = self.stem(inputs)
            hidden = torch.utils.checkpoint.checkpoint(self.body, hidden, use_reentrant=False)
            return self.head(hidden)

    model, _ = run([{"layers": "body.0", "policy": "float32"}], model=Checkpointed())
    assert model.dtypes()[1:] == [[FLOAT32] * 2, [BFLOAT16] * 2]


def test_a_rule_that_hits_nothing_is_told_once(caplog):
    rules = [{"layers": "stam", "policy": "float32"}, {"layers": "head", "policy": "float32"}]
    with caplog.at_level(logging.WARNING, logger="deepseek_hpf.torch.regions"):
        run(rules, calls=3)
    (record,) = caplog.records
    assert 'rules[0] (layers="stam"): the nearest layer is "stem", a Block' in record.getMessage()


def test_a_policy_that_autocast_does_not_have():
    with pytest.raises(ConfigError, match="float64"):
        HybridPrecisionContext("bf16", {"rules": [{"layers": "*", "policy": "float64"}]})
