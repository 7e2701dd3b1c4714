"""A profile made up for the fronts: every part filled, and names that try to break out."""

import random

from deepseek_hpf.profiler.findings import (
    FORMATS_TRIED,
    CastCount,
    Census,
    Conflict,
    Edge,
    LayerRow,
    NonFinite,
    OperationCount,
    RangeRow,
    WhatIf,
)
from deepseek_hpf.profiler.report import ProfileReport

HOSTILE = (
    "<script>alert('1')</script>",
    '"onmouseover="alert(1)',
    "'quoted' & {{ 7*7 }} {% raw %}",
    "[bold]🦜 émoji[/bold]",
    "a/" + "very_long_name_" * 12,
)


def range_row(path, kind="output", largest=1000.0, **changes):
    rng = random.Random(path)
    values = {
        "name": "",
        "dtype": "float32",
        "size": 4096,
        "zeros": 3,
        "nans": 0,
        "infinities": 0,
        "smallest": 1e-6,
        "what_if": tuple(
            WhatIf(dtype, rng.random() / 10, rng.random() / 100, 70.0 - 15 * index)
            for index, dtype in enumerate(FORMATS_TRIED)
        ),
        "first_exponent": -20,
        "histogram": tuple(rng.randrange(100) for _ in range(30)),
    }
    return RangeRow(path=path, kind=kind, largest=largest, **{**values, **changes})


def layer_row(path, dtype="bfloat16", parent=None):
    return LayerRow(
        path, "Dense", "mixed_bfloat16", dtype, "float32", ("float32",), (dtype,), (dtype,),
        ("float32",), 1, 0.001, parent,
    )  # fmt: skip


def conflict(path="block/fc", kind="low_softmax", **changes):
    values = {
        "operation": "Softmax",
        "dtypes": ("float16", "float32"),
        "message": "The softmax runs in float16.",
        "bytes": 2048,
        "seconds": 0.002,
        "rules": ({"layers": path, "policy": "float32"},),
        "advice": "Compute it in float32.",
    }
    return Conflict(kind=kind, path=path, **{**values, **changes})


def census():
    return Census(
        "A made-up step.",
        (
            OperationCount("MatMul", "bfloat16", 12, 10_000, 3e9, 0.01),
            OperationCount("Sub", "float32", 7, 900, 1e9, None),
        ),
        (
            CastCount("float32", "bfloat16", 5, 4096, 0.001),
            CastCount("bfloat16", "float32", 4, 2048),
        ),
        ("No times for XLA.",),
    )


def report(names=(), **changes):
    paths = ["stem", "block/fc", "block/norm", *names, "head"]
    low = {"stem", "block/fc", "head"}
    layers = [
        layer_row(
            path, "bfloat16" if path in low else "float32", "block" if "block/" in path else None
        )
        for path in paths
    ]
    chain = ["", *paths]
    edges = [Edge("stem", "head", "bfloat16", "bfloat16", 0)]
    for before, after in zip(chain, paths, strict=False):
        dtypes = ["bfloat16" if name in low else "float32" for name in (before, after)]
        edges.append(Edge(before, after, *dtypes, 100 if dtypes[0] != dtypes[1] else 0))
    values = {
        "layers": (layer_row("block"), *layers),
        "edges": tuple(edges),
        "conflicts": (
            conflict(),
            conflict("stem", "round_trip", severity="waste", rules=(), bytes=10**7, seconds=1e-6),
            *(conflict(name) for name in names),
        ),
        "ranges": tuple(
            range_row(path, kind, largest=10.0 ** (index % 30))
            for index, path in enumerate(paths)
            for kind in ("input", "output", "output_gradient")
        ),
        "census": census(),
        "nonfinite": NonFinite(
            "forward", "head", "Dense", "inf", 1, tuple(range_row(path) for path in paths)
        ),
        "notes": ("A note.",),
        "seconds": 1.5,
    }
    return ProfileReport("made_up", "jax", "mixed_bfloat16", 2, **{**values, **changes})
