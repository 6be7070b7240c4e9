"""What a training step costs against batch, picture size and depth: one of them varied, the others as the suite has
them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, replace
from typing import Any

import torch

from benchmarks import speed
from benchmarks.environment import environment
from benchmarks.errors import RequestError
from benchmarks.plan import Pretraining
from benchmarks.progress import Reporter
from objectives.arithmetic import Arithmetic
from objectives.backbone import create_backbone
from objectives.machine import multiplies_bf16

# times the suite's own
VARIED: dict[str, tuple[float, ...]] = {
    "batch": (0.25, 0.5, 1, 2, 4), "picture size": (0.5, 1, 1.5, 2), "depth": (1 / 3, 2 / 3, 1, 2),
}


def variants(pretraining: Pretraining) -> Iterator[tuple[str, int, Pretraining]]:
    """What is varied, its value, and the pre-training with it.

    Raises:
        RequestError: the backbone has no depth to vary.
    """
    suite = pretraining.suite
    net = create_backbone(suite.model, suite.kwargs)
    if not hasattr(net, "blocks"):  # stages, each of a depth and a picture size of its own
        raise RequestError(f"--scaling varies the depth of a ViT, and {suite.model} is none; name one by suite.model")
    depth = len(net.blocks)
    for share in VARIED["batch"]:
        batch = max(1, round(share * suite.batch_size))
        yield "batch", batch, replace(pretraining, suite=replace(suite, batch_size=batch))
    stride = suite.input_size // 2
    for share in VARIED["picture size"]:
        size = round(share * 2) * stride
        larger = replace(suite, input_size=size, kwargs={**suite.kwargs, "img_size": size})
        yield "picture size", size, replace(pretraining, suite=larger)
    for share in VARIED["depth"]:
        blocks = max(1, round(share * depth))
        deeper = replace(suite, kwargs={**suite.kwargs, "depth": blocks})
        yield "depth", blocks, replace(pretraining, suite=deeper)


def record(
    pretraining: Pretraining, how: Arithmetic, device: torch.device, steps: int, turns: int, reporter: Reporter
) -> dict[str, Any]:
    """Milliseconds, arithmetic and memory of a picture, or of a step, at every variant."""
    rows, top = [], {}
    for varied, value, variant in variants(pretraining):
        reporter.report(f"{varied} {value}", len(rows), sum(map(len, VARIED.values())))
        batch = variant.suite.batch_size
        (found,), _, top = speed.measure([speed.ours(variant, batch, how, device)], batch, steps, turns)
        rows.append({
            "varied": varied, "value": value, "ms_per_image": round(1000 / found.images_per_second, 4),
            "spread": round(1000 * found.spread / found.images_per_second**2, 4),
            "gflops_per_image": found.gflops_per_image, "memory_mb": found.memory_mb,
            "ceiling_share": found.ceiling_share,
        })
    suite = pretraining.suite
    return {
        "format": 1, "kind": "scaling", "objective": pretraining.label, "suite": suite.name, "model": suite.model,
        "kwargs": dict(suite.kwargs), "input_size": suite.input_size, "batch": suite.batch_size, **asdict(how),
        "steps": steps, "turns": turns, "threads": torch.get_num_threads(),
        "ceiling_gflops": {name: round(value / 1e9, 1) for name, value in top.items()},
        "processor_multiplies_bf16": multiplies_bf16(), "rows": rows, "environment": environment(str(device)),
    }
