"""One rank of a test: runs the cases it is given, and writes down what came of them."""

import contextlib
import datetime
import gc
import json
import logging
import os
import signal
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist
from loops_torch import Training, batches, create_model, sharded
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.parallel import DistributedDataParallel

from deepseek_hpf.distributed import coordinate
from deepseek_hpf.distributed.bfloat16_gradients_torch import send_gradients_in_bfloat16
from deepseek_hpf.errors import ConfigError, PrecisionError
from deepseek_hpf.torch import HybridPrecisionContext


def built(case, size):
    """A training of the engine that a case names."""
    model = create_model(case["seed"])
    engine = case["engine"]
    arguments = {"mode": case.get("mode", "fp32"), "config": case.get("config")}
    if engine == "fsdp":
        shape = tuple(case.get("mesh", (size,)))
        names = ("copies", "shards")[-len(shape) :]
        mesh = init_device_mesh("cpu", shape, mesh_dim_names=names)
        return Training(sharded(model, mesh), **arguments)
    parallel = DistributedDataParallel(model)
    around = parallel.no_sync if engine == "no_sync" else contextlib.nullcontext
    return Training(parallel, **arguments, around=around)


def train(case, rank, size):
    """Trains with faults at some steps of some ranks."""
    training = built(case, size)
    sent = None
    if case.get("compress"):
        sent = send_gradients_in_bfloat16(training.model, training.context)
    faults = {(step, at): kind for step, at, kind in case.get("faults", ())}
    coordinated = case.get("coordinate", True)
    around = coordinate(training.context) if coordinated else training.context
    kept = []
    with around:
        for step, batch in enumerate(batches(case["seed"], rank, size, case["steps"])):
            training.step(*batch, faults.get((step, rank)))
            kept.append(sent.kept_norm() if sent else 0.0)
    result = {**training.result(), "kept": kept}
    if coordinated:
        result |= {"messages": around.messages, "message_bytes": around.message_bytes}
    if sent:
        result |= {"sent": sent.bytes_per_step, "float32": sent.float32_bytes_per_step}
    return result


def checkpointed(case, rank, size):
    """Trains on from a checkpoint, if there is one, to the end or to the death of a rank."""
    training = built(case, size)
    sent = send_gradients_in_bfloat16(training.model, training.context)
    kept = {
        "model": training.model,
        "optimizer": training.optimizer,
        "context": training.context,
        "sent": sent,
    }
    path = Path(case["folder"]) / f"rank{rank}.pt"
    begin = 0
    if case["resume"]:
        saved = torch.load(path)
        begin = saved.pop("step")
        for name, state in saved.items():
            kept[name].load_state_dict(state)
    with coordinate(training.context):
        for step, batch in enumerate(batches(case["seed"], rank, size, case["steps"])):
            if step < begin:
                continue
            if step == case["save_at"] and not case["resume"]:
                states = {name: each.state_dict() for name, each in kept.items()}
                torch.save({**states, "step": step}, path)
                dist.barrier()
            if [step, rank] == case.get("dies"):
                os.kill(os.getpid(), signal.SIGKILL)
            if [step, rank] == case.get("sleeps"):
                time.sleep(3600)  # until the test ends it
            training.step(*batch, "overflow" if step == case["save_at"] - 1 else None)
    return {**training.result(), "context": training.context.state_dict()}


def refused(case, rank, size):
    """Starts with a configuration for each rank; returns the refusal."""
    given = case["contexts"][rank]
    try:
        coordinate(HybridPrecisionContext(given["mode"], given["config"], device="cpu"))
    except ConfigError as error:
        return str(error)
    return None


def another_scale(case, rank, size):
    """One rank has loaded another scale; returns the scales, and what was told."""
    told = []
    logger = logging.getLogger("deepseek_hpf.distributed.coordination")
    handler = logging.Handler()
    handler.emit = lambda entry: told.append(entry.getMessage())
    logger.addHandler(handler)
    training = built(case, size)
    if rank == case["rank"]:
        training.context.load_state_dict({**training.context.state_dict(), "scale": 64.0})
    with coordinate(training.context):
        for batch in batches(case["seed"], rank, size, 3):
            training.step(*batch)
    logger.removeHandler(handler)
    return {"scale": training.record["scale"], "told": told}


def kept_of_bfloat16(case, rank, size):
    """Gradients that never change: what arrived, and what the ranks keep."""
    torch.manual_seed(case["seed"] + rank)
    model = torch.nn.Linear(37, 3)
    wanted = {n: torch.randn(p.shape) for n, p in model.named_parameters()}
    parallel = DistributedDataParallel(model)
    sent = send_gradients_in_bfloat16(parallel, HybridPrecisionContext("fp32", device="cpu"))
    arrived = {n: torch.zeros_like(p, dtype=torch.float64) for n, p in wanted.items()}
    for _ in range(case["steps"]):
        model.zero_grad()
        parallel(torch.zeros(1, 37))  # for DDP to make ready
        sum((p * wanted[n]).sum() for n, p in model.named_parameters()).backward()
        for n, p in model.named_parameters():
            arrived[n] += p.grad
    kept = sent.state_dict()["kept"]
    result = {"wanted": [], "arrived": [], "kept": []}
    for n in wanted:
        result["wanted"] += wanted[n].flatten().tolist()
        result["arrived"] += arrived[n].flatten().tolist()
        result["kept"] += kept[n].flatten().tolist()
    return result


KINDS = {f.__name__: f for f in (train, checkpointed, refused, another_scale, kept_of_bfloat16)}


def main(rank, size, given, result, meeting_place):
    seconds = given.get("timeout", 120)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{meeting_place}",
        rank=rank,
        world_size=size,
        timeout=datetime.timedelta(seconds=seconds),
    )
    torch.set_num_threads(1)
    results = [KINDS[case["kind"]](case, rank, size) for case in given["cases"]]
    Path(result).write_text(json.dumps(results))
    dist.barrier()
    gc.collect()  # DDP is part of a cycle, which keeps the group's threads alive
    dist.destroy_process_group()


if __name__ == "__main__":
    try:
        main(
            int(sys.argv[1]),
            int(sys.argv[2]),
            json.loads(Path(sys.argv[3]).read_text()),
            *sys.argv[4:],
        )
    except PrecisionError as error:
        sys.exit(f"PrecisionError: {error}")
