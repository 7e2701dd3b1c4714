"""What coordination refuses, and what it does where a process trains alone."""

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from deepseek_hpf import ConfigError, HybridPrecisionContext, PrecisionError
from deepseek_hpf.distributed import coordinate
from deepseek_hpf.distributed.bfloat16_gradients_torch import send_gradients_in_bfloat16
from deepseek_hpf.distributed.group_torch import TorchGroup, lost_ranks_told
from deepseek_hpf.distributed.shards_torch import statistics_of_parts

pytestmark = pytest.mark.pure

# As gloo and the group's store say it, in PyTorch 2.6 to 2.13.
SAID = [
    "[../third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:1",
    "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:547] Connection reset by peer",
    "[/gloo/transport/tcp/unbound_buffer.cc:84] Timed out waiting 5000ms for recv operation",
]


@pytest.fixture
def group_of_one():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_without_a_process_group_it_says_how_to_start():
    with pytest.raises(ConfigError, match=r"Received: none.*torchrun --nproc-per-node 2"):
        coordinate(HybridPrecisionContext("fp32"))


@pytest.mark.parametrize("value", [{"a": [1, 2.5, None, "ä\x00"]}, {}, [], "", 0])
def test_values_come_back_as_they_were(group_of_one, value):
    group = TorchGroup()
    assert (group.rank, group.size) == (0, 1)
    assert group.broadcast(value) == value
    assert group.gather(value) == [value]
    assert group.sum([0.1, 2.0**52 + 1]) == [0.1, 2.0**52 + 1]


@pytest.mark.parametrize("said", SAID)
def test_a_lost_rank_is_told_in_a_clear_sentence(group_of_one, said):
    sentence = r"Another process.*from the last checkpoint.*Received"
    with pytest.raises(PrecisionError, match=sentence), lost_ranks_told():
        raise RuntimeError(said)
    coordinated = coordinate(HybridPrecisionContext("fp32"))
    with pytest.raises(PrecisionError, match=sentence), coordinated:
        raise RuntimeError(said)


@pytest.mark.parametrize(
    "error", [RuntimeError("mat1 and mat2 shapes"), PrecisionError("of gloo/"), KeyError("gloo/")]
)
def test_another_error_stays_what_it_is(group_of_one, error):
    coordinated = coordinate(HybridPrecisionContext("bf16"))
    with pytest.raises(type(error)) as caught, coordinated:
        raise error
    assert caught.value is error
    assert torch.is_autocast_enabled("cpu") is False


def test_the_context_can_be_entered_by_itself_and_still_asks_the_others(group_of_one):
    context = HybridPrecisionContext("fp16")
    coordinated = coordinate(context)
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.SGD([weight], lr=0.5)
    with context:
        weight.grad = torch.tensor([1.0, 2.0, 2.0])
        optimizer.step()
        assert context.gradient_norm == 3.0
        weight.grad = torch.tensor([1.0, float("nan"), 2.0])
        optimizer.step()
    assert coordinated.messages == 2
    assert weight.tolist() == [0.5, 0.0, 0.0]
    assert context.skipped_steps == 1


def test_gradients_that_are_no_shards_have_no_part_to_be_added():
    shards, whole = statistics_of_parts([torch.tensor([3.0, 4.0])])
    assert (shards.finite, shards.norm) == (True, 0.0)
    assert (whole.finite, whole.norm) == (True, 5.0)


def test_bfloat16_messages_are_for_ddp():
    with pytest.raises(ConfigError, match=r"reduce_dtype=torch.bfloat16.*Received: model=Linear"):
        send_gradients_in_bfloat16(torch.nn.Linear(2, 1), HybridPrecisionContext("fp32"))


def test_the_state_of_another_rank_is_refused(group_of_one):
    model = DistributedDataParallel(torch.nn.Linear(2, 1))
    sent = send_gradients_in_bfloat16(model, HybridPrecisionContext("fp32"))
    assert sent.kept_norm() == 0.0
    state = sent.state_dict()
    sent.load_state_dict(state)
    with pytest.raises(ConfigError, match=r"rank 0 of 1\. Received: that of rank 1 of 2"):
        sent.load_state_dict({**state, "rank": 1, "size": 2})


def test_gradients_of_16_bits_are_sent_as_they_are(group_of_one):
    model = DistributedDataParallel(torch.nn.Linear(2, 1).bfloat16())
    sent = send_gradients_in_bfloat16(model, HybridPrecisionContext("fp32"))
    model(torch.ones(4, 2).bfloat16()).sum().backward()
    assert model.module.weight.grad.tolist() == [[4.0, 4.0]]
    assert sent.state_dict()["kept"] == {}
