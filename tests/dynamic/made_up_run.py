"""Event files as a run would write them."""

import math

import numpy as np

from deepseek_hpf.dynamic.event_log import EventLog
from deepseek_hpf.scheduling.events import Event
from deepseek_hpf.scheduling.telemetry import Overflow, Telemetry

HOSTILE = "<script>alert(1)</script>\"'&[bold]"
EVERY = 50


def names(count):
    return [
        f"encoder/transformer_layer_{i}/multi_head_attention..feed_forward" for i in range(count)
    ]


class Writer:
    """An event log with the precision that its blocks are in."""

    def __init__(self, path, blocks, model="made_up"):
        self.log = EventLog(path)
        self.blocks = {name: [f"{name}/dense", f"{name}/norm"] for name in blocks}
        self.precision = dict.fromkeys(blocks, "base")
        self.model = model

    def start(self, step=0, resumed=False):
        self.log.start(
            step,
            model=self.model,
            policy="mixed_float16",
            controller="threshold",
            blocks=self.blocks,
            precision=self.precision,
            resumed=resumed,
        )

    def window(self, step, steps=EVERY, gradient_norm=1.0, **figures):
        self.log.window(Telemetry(step=step, steps=steps, **figures), gradient_norm)

    def move(self, step, block, level, reason="made up", kind=None):
        kind = kind or ("demote" if level == "base" else "promote")
        self.precision = {**self.precision, block: level}
        event = Event(step=step, kind=kind, reason=reason, plan="9f", block=block)
        self.log.event(event, self.precision)

    def overflow(self, step, layer, cause="activation", scale=1024.0):
        where = "a bad sample" if layer is None else f"{layer} in the backward pass"
        self.log.overflow(Overflow(step=step, cause=cause, layer=layer, scale=scale), where)


def realistic(path, *, steps=3000, blocks=8, resume=True, epochs=3, seed=None):
    """A run of some switches and overflows; resumed once, from before its last lines."""
    random = np.random.default_rng(seed)
    writer = Writer(path, names(blocks), model="character_gpt")
    writer.start()
    scale = 2.0**15
    order = list(writer.blocks)
    killed = resume
    step = EVERY
    while step <= steps:
        if step % 350 == 0:
            block = order[int(random.integers(blocks))]
            writer.overflow(step - 3, f"{block}/dense", scale=scale)
            scale /= 2
            level = "critical" if random.random() < 0.3 else "float32"
            reason = f"{block}/dense overflowed at step {step - 3} (activation)"
            writer.move(step, block, level, reason)
        raised = [name for name, level in writer.precision.items() if level != "base"]
        if step % 250 == 0 and raised:
            writer.move(step, raised[0], "base", "calm for 1000 steps")
        if step % 1000 == 0:
            scale *= 4
            writer.log.scale(step, scale, "room above the largest gradient")
        writer.window(
            step,
            epoch=step * epochs // (steps + 1),
            skipped=int(step % 350 == 0),
            scale=scale,
            loss=4.0 * math.exp(-step / 900) + 0.8 + 0.05 * random.random(),
            gradient_norm=math.exp(random.normal(0, 0.4)) * (20 if step % 350 == 0 else 1),
            step_seconds=0.02 + 0.004 * len(raised),
        )
        if killed and step >= steps // 2:
            killed = False
            writer.log.close()
            writer.log = EventLog(path)
            step -= 2 * EVERY
            writer.start(step, resumed=True)
        step += EVERY
    writer.log.close()
    return path
