"""The sequence of a search: blanket policies, mixed plans, XLA, and the last comparison."""

import time

import keras

from deepseek_hpf import hardware
from deepseek_hpf.tuning.candidates import FLOAT32, Candidate, blanket
from deepseek_hpf.tuning.hopeless import convolution_share, why_hopeless
from deepseek_hpf.tuning.mixed_plans import try_mixed_plans
from deepseek_hpf.tuning.search import Search

FOR_LAST_TURNS = 0.25  # share of the time that is at most kept for timing in turns
FOR_PROBE = 0.25  # share of the time that the hardware may be measured for
FOR_LAYERS = 0.3  # share of the time that the layers may be measured for, one by one
LOW = ("mixed_bfloat16", "mixed_float16")
# XLA compiles for long, and PyTorch's compiler for minutes.
XLA_BACKENDS = ("tensorflow", "jax")


def run_sequence(search: Search) -> None:
    """Tries what may win, the likeliest first, until the time is out.

    Args:
        search: A search that has its reference.
    """
    began, end = time.monotonic(), search.deadline
    kept = min(FOR_LAST_TURNS * max(end - began, 0.0), search.turns_seconds(more=2))
    search.deadline = end - kept
    hopeless = hopeless_policies(search)
    for policy, kernels in (
        ("mixed_bfloat16", True),
        ("mixed_bfloat16", False),
        (FLOAT32, True),
        ("mixed_float16", True),
        ("mixed_float16", False),
    ):
        candidate = blanket(policy, kernels=kernels)
        search.add(candidate, refused=hopeless.get(policy))
    search.deadline = max(search.deadline, end - search.turns_seconds(more=3))
    try_mixed_plans(search, FOR_LAYERS * max(end - began, 0.0))
    _try_other_compiler(search)
    best_blanket = _fastest_blanket(search)
    names = list(dict.fromkeys([*search.close(), *best_blanket]))
    search.time_in_turns(names, FLOAT32, end)


def hopeless_policies(search: Search) -> dict[str, str]:
    """Policies that cannot gain on this hardware, as measured there.

    The measuring takes its time from the search's; what it finds is kept for later ones.

    Args:
        search: A search.

    Returns:
        Name of the policy to the reason.
    """
    device = hardware.preferred_device(hardware.usable_devices(keras.backend.backend()))
    left = max(search.deadline - time.monotonic(), 0.0)
    found = hardware.probe(
        device,
        time_budget=FOR_PROBE * left,
        progress=lambda text: search.say(f"what the hardware is fast at: {text}", None),
    )
    share = convolution_share(search.trial.model)
    reasons = {
        policy: why_hopeless(found, device, policy.removeprefix("mixed_"), share) for policy in LOW
    }
    return {policy: reason for policy, reason in reasons.items() if reason is not None}


def _try_other_compiler(search: Search) -> None:
    """The fastest so far with XLA, or without where the model has it."""
    if keras.backend.backend() not in XLA_BACKENDS or search.trial.model.run_eagerly:
        return
    best = search.candidates[search.close()[0]]
    other = not search.trial.uses_xla
    name = f"{best.name}, {'XLA' if other else 'no XLA'}"
    search.add(Candidate(name, best.config.replace(jit_compile=other)))


def _fastest_blanket(search: Search) -> list[str]:
    blankets = [
        candidate
        for name, candidate in search.candidates.items()
        if candidate.is_blanket and name in search.prepared and search.is_allowed(candidate)
    ]
    return [max(blankets, key=lambda each: each.ratio or 0.0).name]
