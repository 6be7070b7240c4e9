"""Speed of the training step: images per second, memory, arithmetic, share of what the device can do.

All contestants take turns (A B C A B C …) on the same random pictures in one process, so that a machine whose clock
wanders wrongs none of them; figures are medians over the turns. The ceiling is a large matrix product of the same
precision on the same device, measured in the same turns.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.environment import environment
from benchmarks.errors import RequestError
from benchmarks.execute import rehearsed
from benchmarks.plan import Pretraining
from benchmarks.progress import Reporter

CEILING_SIDE = {"cpu": 2048, "cuda": 8192}  # of the square matrices whose product is the ceiling
CLASSES = 10  # labels of the random pictures


@dataclass(frozen=True)
class Speed:
    """What was measured of one contestant.

    Attributes:
        images_per_second: median over the turns; ``spread`` is half the distance of the quartiles, same unit.
        memory_mb: peak of what the step allocates beyond what it finds, plus weights and optimiser (MiB).
        gflops_per_image: counted multiply-adds times two of forward and backward, teacher and heads included.
        ceiling_share: arithmetic done per second over that of the matrix product, 0 to 1.
        data_share: share of the step's time spent fetching the batch.
        ratio: images per second over those of the first contestant.
    """

    name: str
    images_per_second: float
    spread: float
    memory_mb: float
    gflops_per_image: float
    ceiling_share: float
    data_share: float
    ratio: float


class Contestant:
    """A training step that can be repeated: ``fetch`` gives a batch, ``step`` trains on it."""

    def __init__(
        self, name: str, model: nn.Module, loss: Callable[[Any], Tensor], fetch: Callable[[], Any],
        after: Callable[[], None], clip: float | None, precision: str, device: torch.device,
    ) -> None:
        self.name, self.model, self.loss, self.fetch, self.after = name, model, loss, fetch, after
        self.clip, self.precision, self.device = clip, precision, device
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        fused = {"fused": True} if device.type == "cuda" else {}
        self.optimiser = torch.optim.AdamW(self.parameters, lr=1e-4, weight_decay=0.05, **fused)

    def autocast(self) -> contextlib.AbstractContextManager:
        if self.precision == "fp32":
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16)

    def step(self, batch: Any) -> None:
        with self.autocast():
            loss = self.loss(batch)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        if self.clip:
            nn.utils.clip_grad_norm_(self.parameters, self.clip)
        self.optimiser.step()
        self.after()


def ours(pretraining: Pretraining, batch: int, precision: str, device: torch.device) -> Contestant:
    """An objective of the registry at the suite's size, on random pictures."""
    suite = pretraining.suite
    if not pretraining.recipe.trains:
        raise RequestError(f"{pretraining.recipe.name} does not train: there is no step to time")
    torch.manual_seed(0)
    objective = rehearsed(pretraining, CLASSES, steps=1000)
    objective.to(device).train()
    objective.begin_step(0, 0)
    pictures = torch.randint(0, 256, (4 * batch, 3, suite.input_size, suite.input_size), dtype=torch.uint8)
    labels = torch.randint(0, CLASSES, (4 * batch,))

    def fetch() -> dict[str, Tensor]:
        index = torch.randperm(len(pictures))[:batch]
        return {"images": pictures[index].to(device), "labels": labels[index].to(device), "index": index}

    return Contestant(
        pretraining.label, objective, lambda b: objective(**b, mode="loss")["loss"], fetch,
        lambda: objective.after_step(1), pretraining.optimiser.clip, precision, device,
    )


def peer(pretraining: Pretraining, batch: int, precision: str, device: torch.device) -> Contestant:
    """mmpretrain's model of the same objective at the same sizes; see :data:`PEERS`.

    Raises:
        RequestError: mmpretrain has no such model, or not for this backbone.
    """
    name = pretraining.recipe.name
    if name not in PEERS:
        raise RequestError(f"--peer mmpretrain: no step of {name}; it has {', '.join(PEERS)}")
    from mmpretrain.registry import MODELS
    from mmpretrain.structures import DataSample

    suite = pretraining.suite
    if "swin" in suite.model:
        raise RequestError(f"--peer mmpretrain: compared on ViTs, not on {suite.model}")
    backbone = _sizes(suite.model, suite.kwargs)
    config = PEERS[name](suite.input_size, backbone, suite.decoder or {})
    torch.manual_seed(0)
    model = MODELS.build({**config, "_scope_": "mmpretrain"})
    model.init_weights()
    model.to(device).train()
    grid = suite.input_size // backbone["patch"]
    pictures = torch.randn(2 * batch, 3, suite.input_size, suite.input_size)
    samples = []
    for _ in range(batch):
        sample = DataSample()
        sample.mask = (torch.rand(grid, grid) < 0.4).to(device)
        samples.append(sample)

    def fetch() -> Tensor:
        return pictures[torch.randperm(len(pictures))[:batch]].to(device)

    return Contestant(
        f"mmpretrain {name}", model, lambda b: sum(model.loss(b, samples).values()), fetch, lambda: None,
        pretraining.optimiser.clip, precision, device,
    )


def _sizes(model: str, kwargs: Mapping[str, Any]) -> dict[str, int]:
    """Width, depth, heads and patch of a timm ViT."""
    from objectives.backbone import create_backbone

    net = create_backbone(model, kwargs)
    return {"width": net.embed_dim, "depth": len(net.blocks), "heads": net.blocks[0].attn.num_heads,
            "patch": net.patch_embed.patch_size[0]}


def _arch(b: Mapping[str, int]) -> dict[str, int]:
    return {"embed_dims": b["width"], "num_layers": b["depth"], "num_heads": b["heads"],
            "feedforward_channels": 4 * b["width"]}


def _mae(size: int, b: Mapping[str, int], decoder: Mapping[str, int]) -> dict[str, Any]:
    d = {"width": 512, "depth": 8, "heads": 16, **decoder}
    return {
        "type": "MAE",
        "backbone": {"type": "MAEViT", "arch": _arch(b), "img_size": size, "patch_size": b["patch"],
                     "mask_ratio": 0.75},
        "neck": {"type": "MAEPretrainDecoder", "num_patches": (size // b["patch"]) ** 2, "patch_size": b["patch"],
                 "embed_dim": b["width"], "decoder_embed_dim": d["width"], "decoder_depth": d["depth"],
                 "decoder_num_heads": d["heads"], "mlp_ratio": 4.0},
        "head": {"type": "MAEPretrainHead", "norm_pix": True, "patch_size": b["patch"],
                 "loss": {"type": "PixelReconstructionLoss", "criterion": "L2"}},
    }


def _maskfeat(size: int, b: Mapping[str, int], decoder: Mapping[str, int]) -> dict[str, Any]:
    return {
        "type": "MaskFeat",
        "backbone": {"type": "MaskFeatViT", "arch": _arch(b), "img_size": size, "patch_size": b["patch"]},
        "neck": {"type": "LinearNeck", "in_channels": b["width"], "out_channels": 108, "norm_cfg": None},
        "head": {"type": "MIMHead", "loss": {"type": "PixelReconstructionLoss", "criterion": "L2"}},
        "target_generator": {"type": "HOGGenerator", "nbins": 9, "pool": 8, "gaussian_window": 16},
    }


PEERS: dict[str, Callable[[int, Mapping[str, int], Mapping[str, int]], dict[str, Any]]] = {
    "mae": _mae, "maskfeat": _maskfeat,
}


def wait(device: torch.device) -> None:
    """Until the device has done what it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def ceiling(device: torch.device, precision: str) -> Callable[[], float]:
    """A turn of the matrix product; returns operations per second."""
    side = CEILING_SIDE[device.type]
    dtype = torch.float32 if precision == "fp32" else torch.bfloat16
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))

    def turn() -> float:
        wait(device)
        started = time.perf_counter()
        torch.mm(a, b)
        wait(device)
        return 2 * side**3 / (time.perf_counter() - started)

    return turn


def count_flops(contestant: Contestant) -> float:
    """Operations of a step, forward and backward: matrix products, convolutions, attention."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        contestant.step(contestant.fetch())
    return float(counter.get_total_flops())


def peak_memory(contestant: Contestant) -> float:
    """Peak MiB of a step: what it allocates beyond what it finds, plus weights, gradients and optimiser state."""
    state = sum(v.nbytes for s in contestant.optimiser.state.values() for v in s.values() if isinstance(v, Tensor))
    kept = state + sum(t.nbytes for t in [*contestant.model.parameters(), *contestant.model.buffers()])
    contestant.optimiser.zero_grad(set_to_none=True)
    batch = contestant.fetch()
    if contestant.device.type == "cuda":
        wait(contestant.device)
        torch.cuda.reset_peak_memory_stats(contestant.device)
        before = torch.cuda.memory_allocated(contestant.device)
        contestant.step(batch)
        wait(contestant.device)
        return (torch.cuda.max_memory_allocated(contestant.device) - before + kept) / 2**20
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        contestant.step(batch)
    changes = [(e.start_ns(), e.nbytes()) for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = peak = 0
    for _, size in sorted(changes, key=lambda change: change[0]):
        held += size
        peak = max(peak, held)
    return (peak + kept) / 2**20


def measure(
    contestants: Sequence[Contestant], batch: int, steps: int, turns: int, reporter: Reporter | None = None
) -> tuple[list[Speed], float]:
    """Time the contestants in turns; returns their speeds and the ceiling in operations per second.

    Args:
        batch: pictures a step.
        steps: steps of one turn; one more, not timed, comes first.
        turns: how often each has its turn.
    """
    device, precision = contestants[0].device, contestants[0].precision
    product = ceiling(device, precision)
    product()
    flops, memory = [], []
    for contestant in contestants:  # the first steps warm up, too
        contestant.step(contestant.fetch())
        flops.append(count_flops(contestant) / batch)
        memory.append(peak_memory(contestant))
    rates: list[list[float]] = [[] for _ in contestants]
    fetching: list[list[float]] = [[] for _ in contestants]
    tops = []
    for turn in range(turns):
        tops.append(product())
        for number, contestant in enumerate(contestants):
            if reporter:
                reporter.report(contestant.name, turn * len(contestants) + number + 1, turns * len(contestants))
            contestant.step(contestant.fetch())
            wait(device)
            started, fetched = time.perf_counter(), 0.0
            for _ in range(steps):
                asked = time.perf_counter()
                data = contestant.fetch()
                fetched += time.perf_counter() - asked
                contestant.step(data)
            wait(device)
            seconds = time.perf_counter() - started
            rates[number].append(steps * batch / seconds)
            fetching[number].append(fetched / seconds)
    top = statistics.median(tops)
    medians = [statistics.median(rate) for rate in rates]
    return [
        Speed(
            contestant.name, round(median, 2), round(_half_quartiles(rate), 2), round(mb, 1), round(work / 1e9, 4),
            round(median * work / top, 4), round(statistics.median(share), 4), round(median / medians[0], 3),
        )
        for contestant, median, rate, mb, work, share in zip(
            contestants, medians, rates, memory, flops, fetching, strict=True
        )
    ], top


def _half_quartiles(values: Sequence[float]) -> float:
    if len(values) < 2:
        return 0.0
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return (high - low) / 2


def record(
    speeds: Sequence[Speed], top: float, suite: str, model: str, size: int, batch: int, precision: str, device: str,
    steps: int, turns: int,
) -> dict[str, Any]:
    """What is kept of a measurement."""
    return {
        "format": 1, "suite": suite, "model": model, "input_size": size, "batch": batch, "precision": precision,
        "steps": steps, "turns": turns, "threads": torch.get_num_threads(), "ceiling_gflops": round(top / 1e9, 1),
        "rows": [asdict(speed) for speed in speeds], "environment": environment(device),
    }
