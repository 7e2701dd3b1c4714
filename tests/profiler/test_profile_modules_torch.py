"""`profile` of plain PyTorch modules: planted conflicts, clean models, numbers, no trace left."""

import subprocess
import sys

import numpy as np
import pytest

from deepseek_hpf import profile
from deepseek_hpf.errors import ConfigError, ConfigTypeError

pytestmark = pytest.mark.backend("torch")
torch = pytest.importorskip("torch")
nn, functional = torch.nn, torch.nn.functional


def context_of(mode, **config):
    from deepseek_hpf.torch import HybridPrecisionContext

    return HybridPrecisionContext(precision_mode=mode, config=config or None)


def float_loss(output, labels):
    return functional.cross_entropy(output.float(), labels)


class Block(nn.Module):
    """A linear layer, then a function written by hand in a module of its own."""

    def __init__(self, function, width=8):
        super().__init__()
        self.first = nn.Linear(8, width)
        self.middle = ByHand(function)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.middle(self.first(x)))


class ByHand(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def batch_of(*shape):
    generator = torch.Generator().manual_seed(3)
    return torch.randn(16, *(shape or (8,)), generator=generator), torch.arange(16) % 3


def long_mean(x):
    return x + x.repeat(1, 256).mean(1, keepdim=True)


def norm_by_hand(x):
    return x * torch.rsqrt(x.square().mean(1, keepdim=True) + 1e-3)


PLANTED = {
    "softmax": ("low_softmax", lambda x: x.softmax(-1)),
    "log_softmax": ("low_softmax", lambda x: x.log_softmax(-1)),
    "attention": ("low_softmax", lambda x: (x[:, :, None] * x[:, None]).softmax(-1).sum(1)),
    "long_mean": ("low_reduction", long_mean),
    "norm_by_hand": ("low_normalization", norm_by_hand),
}


@pytest.mark.parametrize("mode", ["bf16", "fp16"])
@pytest.mark.parametrize("case", sorted(PLANTED))
def test_operations_planted_in_a_module_are_found_and_the_rules_are_the_remedy(case, mode):
    torch.manual_seed(0)
    kind, function = PLANTED[case]
    model, batch = Block(function), batch_of()
    before = profile(
        model, batch, criterion=float_loss, context=context_of(mode), census=False
    ).conflicts
    assert [(c.kind, c.path) for c in before] == [(kind, "middle")]
    assert before[0].rules == ({"layers": "middle", "policy": "float32"},)
    ruled = context_of(mode, rules=[dict(rule) for rule in before[0].rules])
    after = profile(model, batch, criterion=float_loss, context=ruled, census=False)
    assert after.conflicts == ()


@pytest.mark.parametrize("with_loss", [True, False])
def test_a_low_output_is_found_and_the_rules_are_the_remedy(with_loss):
    def criterion(output, labels):
        return (output - functional.one_hot(labels, 3).to(output.dtype)).square().mean()

    model, batch = Block(torch.relu), batch_of()
    options = {"criterion": criterion if with_loss else None, "census": False}
    before = profile(model, batch, context=context_of("bf16"), **options).conflicts
    assert [(c.kind, c.path) for c in before] == [("low_output", "head")]
    ruled = context_of("bf16", rules=[dict(rule) for rule in before[0].rules])
    assert profile(model, batch, context=ruled, **options).conflicts == ()


def test_an_overflow_is_found_where_it_is_made_and_the_rules_are_the_remedy():
    def grow(x):
        return x * 1e6

    class Model(Block):
        def forward(self, x):
            return self.head(functional.layer_norm(self.middle(self.first(x)), (8,)))

    model, batch = Model(grow), batch_of()
    report = profile(model, batch, criterion=float_loss, context=context_of("fp16"), census=False)
    assert [(c.kind, c.path) for c in report.conflicts] == [("overflow", "middle")]
    assert (report.nonfinite.phase, report.nonfinite.path) == ("forward", "middle")
    assert (report.nonfinite.operation, report.nonfinite.value) == ("mul", "inf")
    ruled = context_of("fp16", rules=[dict(rule) for rule in report.conflicts[0].rules])
    after = profile(model, batch, criterion=float_loss, context=ruled, census=False)
    assert after.conflicts == ()
    assert after.nonfinite is None


def test_gradients_that_underflow_without_loss_scaling_are_found_and_scaling_is_the_remedy():
    def small_loss(output, labels):
        return float_loss(output, labels) * 1e-5

    model, batch = Block(torch.relu), batch_of()
    options = {"criterion": small_loss, "census": False}
    with torch.autocast("cpu", torch.float16):
        report = profile(model, batch, **options)
    assert {c.kind for c in report.conflicts} == {"gradient_underflow"}
    assert any("cannot be seen" in note for note in report.notes)
    assert profile(model, batch, context=context_of("fp16"), **options).conflicts == ()


def test_low_weights_without_masters_are_found_and_masters_are_the_remedy():
    model, (x, y) = Block(torch.relu).bfloat16(), batch_of()
    batch, options = (x.bfloat16(), y), {"criterion": float_loss, "census": False}
    found = {(c.kind, c.path) for c in profile(model, batch, **options).conflicts}
    assert found == {("low_weights", "first"), ("low_weights", "head")}
    masters = context_of("bf16", master_weights=True)
    assert profile(model, batch, context=masters, **options).conflicts == ()


def test_a_round_trip_through_float32_is_found_with_its_bytes():
    model, batch = Block(lambda x: x.float()), batch_of()
    report = profile(model, batch, criterion=float_loss, context=context_of("bf16"))
    # Widened in one module, narrowed by autocast in the next: 16 rows of 8.
    assert [(c.kind, c.path, c.bytes) for c in report.conflicts] == [
        ("cast_chain", "head", 12 * 16 * 8)
    ]


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm, self.head = nn.LSTM(8, 12, batch_first=True), nn.Linear(12, 3)

    def forward(self, x):
        return self.head(self.lstm(x)[0][:, -1])


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.layer(x).mean(1))


CLEAN = {
    "mlp": (lambda: Block(torch.relu), (8,)),
    "cnn": (
        lambda: nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)
        ),
        (1, 8, 8),
    ),
    "lstm": (Recurrent, (5, 8)),
    "transformer": (Encoder, (5, 8)),
}


@pytest.mark.parametrize("mode", ["bf16", "fp16"])
@pytest.mark.parametrize("name", sorted(CLEAN))
def test_no_false_alarm_on_clean_models(name, mode):
    torch.manual_seed(0)
    make, shape = CLEAN[name]
    # Plain torch.autocast fails too: oneDNN trains no LSTM in float16 on this kind of CPU.
    rules = [{"layers": "lstm", "policy": "float32"}] if (name, mode) == ("lstm", "fp16") else []
    context = context_of(mode, rules=rules)
    report = profile(make(), batch_of(*shape), criterion=float_loss, context=context, census=False)
    assert report.conflicts == ()
    assert report.nonfinite is None


def everything(model, context):
    tensors = {name: t.clone() for name, t in model.state_dict().items()}
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()]
    flags = [m.training for m in model.modules()]
    state = {k: v for k, v in context.state_dict().items() if k != "masters"}
    return tensors, gradients, hooks, flags, torch.get_rng_state(), state


def assert_same(before, after):
    torch.testing.assert_close(after[0], before[0], rtol=0, atol=0)
    torch.testing.assert_close(after[1], before[1], rtol=0, atol=0)
    assert after[2:4] == before[2:4]
    assert torch.equal(after[4], before[4])
    assert after[5] == before[5]


@pytest.mark.parametrize("fails", [False, True])
def test_nothing_is_left_behind(fails):
    def criterion(output, labels):
        if fails:
            raise ValueError("planted")
        return float_loss(output, labels)

    model = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3))
    batch, context = batch_of(), context_of("fp16")
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with context:
        float_loss(model(batch[0]), batch[1]).backward()
        optimizer.step()
    held = [p.grad for p in model.parameters()]
    before = everything(model, context)
    if fails:
        with pytest.raises(ConfigError, match="planted"):
            profile(model, batch, criterion=criterion, context=context)
    else:
        profile(model, batch, criterion=criterion, context=context, steps=2)
    assert_same(before, everything(model, context))
    assert all(p.grad is grad for p, grad in zip(model.parameters(), held, strict=True))


def test_ranges_are_those_of_numpy_and_gradients_come_unscaled():
    torch.manual_seed(0)
    model, (x, y) = nn.Sequential(nn.Linear(8, 5), nn.Tanh(), nn.Linear(5, 3)), batch_of()
    twin = nn.Sequential(nn.Linear(8, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    twin.load_state_dict(model.state_dict())
    outputs = twin[:2](x.double())
    outputs.retain_grad()
    float_loss64 = functional.cross_entropy(twin[2](outputs), y)
    float_loss64.backward()
    wanted = {
        ("1", "output"): outputs,
        ("1", "output_gradient"): outputs.grad,
        ("0", "weight_gradient"): twin[0].weight.grad,
        ("0", "weight"): twin[0].weight,
    }
    # Float32 computes to 2^-24 a step; float16 to 2^-11, and the scale must be taken back.
    for mode, tolerance in (("fp32", 1e-5), ("fp16", 2e-2)):
        report = profile(model, (x, y), criterion=float_loss, context=context_of(mode))
        for (path, kind), reference in wanted.items():
            row = report.ranges_of(path, kind)[0]
            magnitudes = np.abs(reference.detach().numpy())
            assert row.size == magnitudes.size
            assert row.largest == pytest.approx(magnitudes.max(), rel=tolerance)


def test_a_report_goes_to_json_and_back(tmp_path):
    report = profile(
        Block(torch.relu), batch_of(), criterion=float_loss, context=context_of("bf16")
    )
    report.to_json(tmp_path / "a.json")
    assert type(report).from_json(tmp_path / "a.json") == report
    assert report.census.cast_count > 0
    assert report.census.arithmetic_shares()["bfloat16"] > 0.9
    assert {row.path: row.compute_dtype for row in report.layers}["head"] == "bfloat16"


def test_inputs_may_be_a_tuple_or_a_dict():
    (x, y), model = batch_of(), Block(torch.relu)
    reports = [profile(model, (given, y), census=False) for given in (x, (x,), {"x": x})]
    assert len({report.ranges_of("head") for report in reports}) == 1


def test_what_does_not_fit_is_refused_with_the_way_out():
    model, batch = Block(torch.relu), batch_of()
    with pytest.raises(ConfigError, match="inputs, None"):
        profile(model, batch[0])
    with pytest.raises(ConfigError, match=r"criterion\(module"):
        profile(model, (batch[0][:, :3], batch[1]))
    with pytest.raises(ConfigError, match="Take its mean"):
        profile(model, batch, criterion=lambda output, labels: output)
    with pytest.raises(ConfigTypeError, match=r"torch\.autocast"):
        profile(model, batch, context=torch.autocast("cpu"))


def test_a_module_is_profiled_without_keras():
    code = (
        "import sys, torch, deepseek_hpf\n"
        "deepseek_hpf.profile(torch.nn.Linear(2, 1), (torch.ones(1, 2), None))\n"
        "assert 'keras' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


class Residual(nn.Module):
    """A module that computes between the modules that it holds."""

    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x):
        return x + self.down(functional.relu(self.up(x)))


def test_edges_go_past_functions_between_modules():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), Residual(), nn.Linear(8, 3))
    report = profile(model, batch_of(), criterion=float_loss, context=context_of("bf16"))
    edges = {(edge.source, edge.target) for edge in report.edges}
    assert edges == {("", "0"), ("0", "1"), ("0", "1/up"), ("1/up", "1/down"), ("1", "2")}
