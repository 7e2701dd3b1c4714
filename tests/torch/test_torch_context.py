"""The context is entered and left without a trace, whatever happens within."""

import json
import logging
import multiprocessing
import os
import subprocess
import sys
import threading

import pytest
import torch
from torch.optim import optimizer as torch_optimizer
from torch_loops import (
    FP16,
    assert_equal,
    create_batches,
    create_model,
    gradients_of,
    loss_of,
    weights_of,
)

from deepseek_hpf import ConfigError, PrecisionConfig
from deepseek_hpf.torch import HybridPrecisionContext

pytestmark = pytest.mark.pure


def traces():
    """What a context may leave behind."""
    return (
        torch.is_autocast_enabled("cpu"),
        torch.get_autocast_dtype("cpu"),
        torch.is_autocast_cache_enabled(),
        len(torch.overrides._get_current_function_mode_stack()),
        len(torch_optimizer._global_optimizer_pre_hooks),
        len(torch_optimizer._global_optimizer_post_hooks),
        len(torch.nn.modules.module._global_forward_pre_hooks),
        len(torch.nn.modules.module._global_forward_hooks),
    )


def train(model, batches):
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    for batch in batches:
        optimizer.zero_grad()
        loss_of(model, *batch).backward()
        optimizer.step()


class Raised(Exception):
    pass


def in_forward(model, optimizer):
    model.register_forward_hook(raising)
    model(torch.ones(2, 4))


def in_backward(model, optimizer):
    model[0].weight.register_hook(raising)
    loss_of(model, torch.ones(2, 4), torch.ones(2, 1)).backward()


def in_step(model, optimizer):
    optimizer.register_step_post_hook(raising)
    loss_of(model, torch.ones(2, 4), torch.ones(2, 1)).backward()
    optimizer.step()


def in_closure(model, optimizer):
    optimizer.step(raising)


def raising(*_):
    raise Raised


@pytest.mark.parametrize("mode", ["fp16", "bf16", "fp32"])
@pytest.mark.parametrize("place", [in_forward, in_backward, in_step, in_closure])
def test_an_exception_leaves_no_trace(place, mode):
    model = create_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = traces()
    with pytest.raises(Raised), HybridPrecisionContext(mode, FP16):
        place(model, optimizer)
    assert traces() == before
    assert all(p._backward_hooks is None or len(p._backward_hooks) <= 1 for p in model.parameters())


@pytest.mark.parametrize("place", [in_backward, in_step, in_closure])
def test_a_loop_that_catches_the_exception_goes_on(place):
    spoilt, model = create_model(), create_model()
    with HybridPrecisionContext("fp16", FP16):
        with pytest.raises(Raised):
            place(spoilt, torch.optim.SGD(spoilt.parameters(), lr=0.1))
        # After a step that raised, autocast is back from the next backward pass on.
        train(create_model(), create_batches(1))
        assert model(torch.ones(1, 4)).dtype == torch.float16
        train(model, create_batches(3))
    other = create_model()
    with HybridPrecisionContext("fp16", FP16):
        train(other, create_batches(3))
    assert_equal(weights_of(model), weights_of(other))


def test_the_innermost_context_acts():
    model = create_model()
    batch = next(create_batches(1))
    outer, inner = HybridPrecisionContext("fp16", FP16), HybridPrecisionContext("fp32")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = traces()
    with outer:
        with inner:
            assert model(batch[0]).dtype == torch.float32
            loss_of(model, *batch).backward()
            expected = gradients_of(model)
            model[0].weight.grad.fill_(float("nan"))
            optimizer.step()
        assert model(batch[0]).dtype == torch.float16
        assert (outer.skipped_steps, inner.skipped_steps) == (0, 1)
        model.zero_grad()
        loss_of(model, *batch).backward()
        optimizer.step()
    assert traces() == before
    for one, other in zip(gradients_of(model), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-2, atol=1e-2)


def test_a_context_in_itself_acts_once():
    model, context = create_model(), HybridPrecisionContext("fp16", FP16)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with context, context:
        loss_of(model, *next(create_batches(1))).backward()
        model[0].weight.grad.fill_(float("inf"))
        optimizer.step()
        assert context.scale == 512.0
    assert context.skipped_steps == 1


def test_scale_and_counters_go_on():
    model, context = create_model(), HybridPrecisionContext("fp16", FP16)
    for batch in create_batches(3):
        with context:
            train(model, [batch])
    assert context.scale == 2048.0


def test_other_threads_are_left_alone():
    model, seen = create_model(), []

    def elsewhere():
        seen.append(model(torch.ones(1, 4)).dtype)
        loss_of(model, *next(create_batches(1))).backward()
        model[0].weight.grad.fill_(float("nan"))
        torch.optim.SGD(model.parameters(), lr=0.1).step()

    with HybridPrecisionContext("fp16", FP16) as context:
        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
    assert seen == [torch.float32]
    assert context.skipped_steps == 0
    assert torch.isnan(model[0].weight).all()


@pytest.mark.parametrize("shared", [True, False])
def test_two_threads_train_as_one_after_the_other(shared):
    contexts = [HybridPrecisionContext("fp16", FP16)] * 2
    if not shared:
        contexts = [HybridPrecisionContext("fp16", FP16) for _ in range(2)]
    models = [create_model(seed) for seed in (0, 1)]
    barrier = threading.Barrier(2)

    def work(context, model):
        with context:
            barrier.wait()
            train(model, create_batches(10))

    threads = [
        threading.Thread(target=work, args=pair) for pair in zip(contexts, models, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed, model in enumerate(models):
        expected = create_model(seed)
        with HybridPrecisionContext("fp16", FP16):
            train(expected, create_batches(10))
        assert_equal(weights_of(model), weights_of(expected))


class Products(torch.utils.data.Dataset):
    """Says in which dtype a worker multiplies."""

    def __len__(self):
        return 2

    def __getitem__(self, index):
        return str((torch.ones(2, 2) @ torch.ones(2, 2)).dtype)


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="needs fork")
@pytest.mark.filterwarnings("ignore")
def test_workers_of_a_loader_are_outside():
    loader = torch.utils.data.DataLoader(Products(), num_workers=1, multiprocessing_context="fork")
    with HybridPrecisionContext("fp16"):
        assert [batch[0] for batch in loader] == ["torch.float32"] * 2
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float16


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore")
def test_a_forked_process_is_outside():
    weight = torch.nn.Parameter(torch.ones(2))
    weight.grad = torch.full((2,), float("nan"))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    with HybridPrecisionContext("fp16"):
        child = os.fork()
        if child == 0:
            optimizer.step()
            os._exit(int(not torch.isnan(weight).all()))
        _, status = os.waitpid(child, 0)
        optimizer.step()
    assert os.waitstatus_to_exitcode(status) == 0
    assert torch.equal(weight, torch.ones(2))


@pytest.fixture
def restless():
    """Threads take turns as often as they can."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


@pytest.mark.usefixtures("restless")
def test_threads_enter_and_leave_while_others_step():
    """PyTorch walks through its hooks while it calls them."""
    errors, done = [], threading.Event()

    def enter_and_leave():
        while not done.is_set():
            with HybridPrecisionContext("fp32"):
                pass

    def step():
        weight = torch.nn.Parameter(torch.ones(1))
        optimizer = torch.optim.SGD([weight], lr=0.1)
        try:
            with HybridPrecisionContext("fp32"):
                for _ in range(1000):
                    weight.grad = torch.ones(1)
                    optimizer.step()
        except RuntimeError as error:
            errors.append(error)
        done.set()

    threads = [threading.Thread(target=work) for work in (enter_and_leave, step)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.filterwarnings("ignore")
def test_a_compiled_model_trains_as_the_plain_one(backend):
    plain, model = create_model(), create_model()
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    with HybridPrecisionContext("fp16", FP16):
        train(plain, create_batches(3))
        train(compiled, create_batches(3))
    for one, other in zip(weights_of(model), weights_of(plain), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)


def test_weights_that_change_are_cast_anew():
    """Autocast's cache would go on with the old ones until the outermost region ends."""
    model = create_model()
    with HybridPrecisionContext("bf16"), torch.no_grad():
        before = model(torch.ones(1, 4))
        for parameter in model.parameters():
            parameter.zero_()
        assert float(before) != 0.0
        assert float(model(torch.ones(1, 4))) == 0.0


def test_modes(caplog):
    with caplog.at_level(logging.INFO, logger="deepseek_hpf.torch.context"):
        context = HybridPrecisionContext()
    assert context.reason in caplog.text
    assert HybridPrecisionContext("bf16").autocast_dtype("cpu") == torch.bfloat16
    assert HybridPrecisionContext(config={"policy": "mixed_float16"}).autocast_dtype("cpu") == (
        torch.float16
    )


def test_the_configuration_is_the_same_file(tmp_path):
    path = tmp_path / "precision.json"
    path.write_text(json.dumps({"loss_scale": {"initial_scale": None}}))
    for config in (path, str(path), PrecisionConfig.from_json(path)):
        context = HybridPrecisionContext("fp16", config)
        assert context.config == PrecisionConfig.from_json(path)
        model = create_model()
        with context:
            train(model, create_batches(2))
        assert context.scale == 1.0


def test_what_has_no_effect_is_told(caplog):
    rule = {"layers": "*", "policy": "float32", "backward": "float32"}
    with caplog.at_level(logging.WARNING):
        HybridPrecisionContext("fp16", {"rules": [rule], "dynamic": {}, "kernels": False})
    (record,) = caplog.records
    assert record.getMessage() == "Without effect on plain PyTorch so far: backward, dynamic."


@pytest.mark.parametrize("config", [3, [], object()])
def test_a_configuration_of_another_type_is_refused(config):
    with pytest.raises(TypeError, match="Expected `config` to be a PrecisionConfig"):
        HybridPrecisionContext(config=config)


def test_it_is_imported_lazily_and_without_keras():
    code = (
        "import sys, deepseek_hpf; assert 'torch' not in sys.modules;"
        "context = deepseek_hpf.HybridPrecisionContext('fp16');"
        "import torch; m = torch.nn.Linear(2, 1); o = torch.optim.SGD(m.parameters())\n"
        "with context: m(torch.ones(1, 2)).float().sum().backward(); o.step()\n"
        "print(*sorted({'keras', 'tensorflow', 'jax'} & set(sys.modules)), context.skipped_steps)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ
    )
    assert done.stdout.split() == ["0"]


def test_without_pytorch_the_extra_is_named():
    code = (
        "import sys; sys.modules['torch'] = None; import deepseek_hpf\n"
        "try: deepseek_hpf.HybridPrecisionContext\n"
        "except ImportError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "deepseek_hpf[torch]" in done.stdout


@pytest.mark.parametrize(
    "state", [{}, {"scale": 1.0}, {**HybridPrecisionContext().state_dict(), "growth_factor": 0.5}]
)
def test_a_state_that_is_none_is_refused(state):
    context = HybridPrecisionContext("fp16")
    before = context.state_dict()
    with pytest.raises(ConfigError):
        context.load_state_dict(state)
    assert context.state_dict() == before
