"""Speed of the training step: images per second, memory, arithmetic, share of what the device can do.

Ours and mmpretrain's train on the same random uint8 pictures in one process, each through its model's own
``train_step``: normalisation, masks drawn anew, loss, gradients, clipping and AdamW included. Contestants (of one
objective, or of all that are to be compared) take turns (A B C A B C …), so that a machine whose clock wanders wrongs
none of them; figures are medians over the turns, ratios those of a turn's neighbours. The ceiling is a large matrix
product of the same precision on the same device, measured in the same turns.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from mmengine.model import BaseModel
from mmengine.optim import OptimWrapper
from torch import Tensor

from benchmarks.environment import environment
from benchmarks.errors import RequestError
from benchmarks.execute import rehearsed
from benchmarks.plan import Pretraining
from benchmarks.progress import Reporter
from benchmarks.speed_flops import counted
from benchmarks.tidy import quiet
from objectives.arithmetic import Arithmetic, AutocastOptimWrapper, hasten, optimiser_wrapper
from objectives.machine import free_as_usual, keep_freed_memory, multiplies_bf16
from objectives.precision import exact
from objectives.pretrain import parameter_groups

CEILING_SIDE = {"cpu": 2048, "cuda": 8192}  # of the square matrices whose product is the ceiling
CEILING_SECONDS = 2.0  # that a product may take; a processor that computes bf16 by conversion gets smaller matrices
PRODUCTS = {"cpu": 1, "cuda": 20}  # of a turn, one after the other: a GPU's takes a millisecond
CLASSES = 10  # labels of the random pictures
BATCHES = 4  # different batches of pictures that are at hand
MASKS = 16  # batches of masks that mmpretrain is given: its workers draw them, beside the step; ours draws in the step
RATE = 1e-4  # of learning, on both sides: no loss of noise diverges in the few steps
SETTLING = 3  # steps that open a turn: on a CPU the memory that a step asks for is at hand from the third on
OURS, PEER = "ours", "mmpretrain"


@dataclass(frozen=True)
class Speed:
    """What was measured of one contestant.

    Attributes:
        side: "ours" or "mmpretrain".
        precision, fused, compiled: see :class:`~objectives.arithmetic.Arithmetic`.
        images_per_second: median over the turns; ``spread`` is half the distance of the quartiles, same unit.
        memory_mb: peak of what the step allocates beyond what it finds, plus weights and optimiser (MiB).
        gflops_per_image: counted multiply-adds times two of forward and backward, teacher and heads included.
        ceiling_share: arithmetic done per second over that of the matrix product, 0 to 1.
        data_share: time to put a batch together and on the device over the step's, measured apart.
    """

    objective: str
    side: str
    precision: str
    fused: bool
    compiled: bool
    images_per_second: float
    spread: float
    memory_mb: float
    gflops_per_image: float
    ceiling_share: float
    data_share: float


@dataclass(frozen=True)
class Ratio:
    """Images per second of ours over its peer's: median over the turns, and the quartiles.

    Attributes:
        peer: mmpretrain's step of the same objective, or ours of the first objective of those that take turns.
    """

    objective: str
    ours: str
    peer: str
    ratio: float
    low: float
    high: float


class Contestant:
    """A training step that can be repeated.

    Args:
        batches: what the model's ``train_step`` takes, in the processor's memory, pinned where a GPU reads it.
        before, after: called with the step's number, from 0, before and after it.
    """

    def __init__(
        self, objective: str, side: str, how: Arithmetic, model: BaseModel, optimiser: OptimWrapper,
        batches: Sequence[Mapping[str, Any]], before: Callable[[int], None], after: Callable[[int], None],
        device: torch.device,
    ) -> None:
        self.objective, self.side, self.how, self.model, self.optimiser = objective, side, how, model, optimiser
        self.batches, self.before, self.after, self.device = batches, before, after, device
        self.steps = 0

    @property
    def name(self) -> str:
        words = [name for name in ("fused", "compiled") if getattr(self.how, name)]
        return " ".join([self.side, self.how.precision, *words])

    def fetch(self) -> Mapping[str, Any]:
        """The next batch."""
        return self.batches[self.steps % len(self.batches)]

    def step(self) -> None:
        self.before(self.steps)
        self.model.train_step(dict(self.fetch()), self.optimiser)
        self.after(self.steps)
        self.steps += 1

    def fetching(self) -> float:
        """Seconds until a batch is on the device."""
        wait(self.device)
        started = time.perf_counter()
        self.model.data_preprocessor.cast_data(dict(self.fetch()))
        wait(self.device)
        return time.perf_counter() - started


def ours(pretraining: Pretraining, batch: int, how: Arithmetic, device: torch.device) -> Contestant:
    """An objective of the registry at the suite's size, on random pictures, as ``bench run`` trains it."""
    suite = pretraining.suite
    if not pretraining.recipe.trains:
        raise RequestError(f"{pretraining.recipe.name} does not train: there is no step to time")
    torch.manual_seed(0)
    objective = rehearsed(pretraining, CLASSES, steps=1000)
    objective.cropped = not suite.pictures.get("in_memory", True)  # workers have cut those that come from disk
    objective.to(device).train()
    hasten(objective, how)
    groups = parameter_groups(objective, pretraining.optimiser.weight_decay)
    optimiser = optimiser_wrapper(groups, pretraining.optimiser, RATE, how)
    side = objective.view if objective.cropped else suite.input_size
    labels, index = _pinned(torch.randint(0, CLASSES, (batch,)), device), _pinned(torch.arange(batch), device)
    batches = [{"images": pictures, "labels": labels, "index": index} for pictures in _pictures(batch, side, device)]
    return Contestant(
        label(pretraining), OURS, how, objective, optimiser, batches, lambda step: objective.begin_step(0, step),
        lambda step: objective.after_step(step + 1), device,
    )


def peer(pretraining: Pretraining, batch: int, precision: str, device: torch.device) -> Contestant:
    """mmpretrain's model of the same objective at the same sizes, with the optimiser that it ships.

    Raises:
        NoPeer: mmpretrain has no such model, or not for this backbone.
    """
    from mmengine.optim import build_optim_wrapper

    from benchmarks import speed_peers

    torch.manual_seed(0)
    with quiet():
        from mmpretrain.structures import DataSample

        model, config, draw = speed_peers.build(pretraining)
        model.to(device).train()
        settings = {**config.optim_wrapper, "optimizer": {**config.optim_wrapper.optimizer, "lr": RATE}}
        if precision == "bf16" and device.type == "cuda":
            settings["dtype"] = "bfloat16"  # in place of fp16; the rest as shipped
        else:  # AmpOptimWrapper, which all four ship, works on GPUs only
            settings["type"] = "OptimWrapper"
            settings.pop("loss_scale", None)
        optimiser = build_optim_wrapper(model, settings)
        if precision == "bf16" and device.type == "cpu":
            if pretraining.recipe.name == "maskfeat":  # its histogram adds fp32 to fp32 only
                target = model.target_generator
                target.forward = exact(device)(target.forward)
            # with the attention that it ships
            optimiser = AutocastOptimWrapper(optimiser.optimizer, clip_grad=settings.get("clip_grad"))

    def samples() -> list[DataSample]:
        found = [DataSample() for _ in range(batch)]
        if draw is not None:
            for sample in found:
                sample.mask = torch.from_numpy(draw())
        return found

    views = 2 if pretraining.recipe.name == "beitv2" else 1  # the student's picture and the tokenizer's
    pictures = _pictures(batch, pretraining.suite.input_size, device)
    batches = []
    for number in range(MASKS):
        chosen = pictures[number % BATCHES]
        batches.append({"inputs": [chosen] * views if views > 1 else chosen, "data_samples": samples()})
    return Contestant(
        label(pretraining), PEER, Arithmetic(precision), model, optimiser, batches, _nothing, _nothing, device
    )


def label(pretraining: Pretraining) -> str:
    """The objective and what of it differs from its recipe; the suite's sizes stand in the record."""
    differs = [f"{key}={value}" for key, value in pretraining.variant.items() if not key.startswith("suite.")]
    return " ".join([pretraining.recipe.name, *differs])


def _nothing(step: int) -> None:
    pass


def _pictures(batch: int, side: int, device: torch.device) -> list[Tensor]:
    """The same for every contestant: uint8 (B, 3, side, side), a few batches of them."""
    generator = torch.Generator().manual_seed(0)
    return [
        _pinned(torch.randint(0, 256, (batch, 3, side, side), dtype=torch.uint8, generator=generator), device)
        for _ in range(BATCHES)
    ]


def _pinned(tensor: Tensor, device: torch.device) -> Tensor:
    """As a loader leaves it: in memory that a GPU reads by itself."""
    return tensor.pin_memory() if device.type == "cuda" else tensor


def wait(device: torch.device) -> None:
    """Until the device has done what it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def ceiling(device: torch.device, precision: str) -> Callable[[], float]:
    """A turn of the matrix product; returns operations per second."""
    dtype, count = torch.float32 if precision == "fp32" else torch.bfloat16, PRODUCTS[device.type]

    def of(side: int) -> Callable[[], float]:
        a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))

        def turn() -> float:
            wait(device)
            started = time.perf_counter()
            for _ in range(count):
                torch.mm(a, b)
            wait(device)
            return 2 * count * side**3 / (time.perf_counter() - started)

        turn()  # chooses its kernel
        return turn

    side = CEILING_SIDE[device.type]
    small = side // 8
    rate = of(small)()
    while side > small and 2 * side**3 / rate > CEILING_SECONDS:
        side //= 2
    return of(side)


def peak_memory(contestant: Contestant) -> float:
    """Peak MiB of a step: what it allocates beyond what it finds, plus weights, gradients and optimiser state."""
    optimiser = contestant.optimiser.optimizer
    state = sum(v.nbytes for s in optimiser.state.values() for v in s.values() if isinstance(v, Tensor))
    kept = state + sum(t.nbytes for t in [*contestant.model.parameters(), *contestant.model.buffers()])
    optimiser.zero_grad(set_to_none=True)
    if contestant.device.type == "cuda":
        wait(contestant.device)
        torch.cuda.reset_peak_memory_stats(contestant.device)
        before = torch.cuda.memory_allocated(contestant.device)
        contestant.step()
        wait(contestant.device)
        return (torch.cuda.max_memory_allocated(contestant.device) - before + kept) / 2**20
    os.environ.setdefault("KINETO_LOG_LEVEL", "5")  # torch's profiler calls it an error that there is no GPU
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        contestant.step()
    changes = [(e.start_ns(), e.nbytes()) for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = peak = 0
    for _, size in sorted(changes, key=lambda change: change[0]):
        held += size
        peak = max(peak, held)
    return (peak + kept) / 2**20


def measure(
    contestants: Sequence[Contestant], batch: int, steps: int, turns: int, reporter: Reporter | None = None
) -> tuple[list[Speed], list[Ratio], dict[str, float]]:
    """Time the contestants in turns: their speeds, ours over their peers', operations a second of the matrix product
    in each precision.

    Args:
        batch: pictures a step.
        steps: steps of one turn; :data:`SETTLING` more, not timed, come first.
        turns: how often each has its turn.
    """
    device = contestants[0].device
    torch.backends.cudnn.benchmark = device.type == "cuda"  # as pre-training has it
    products = {name: ceiling(device, name) for name in dict.fromkeys(c.how.precision for c in contestants)}
    flops, memory, fetching = [], [], []
    for contestant in contestants:  # the first steps warm up, too, and compile
        contestant.step()
        flops.append(counted(contestant.step) / batch)
        memory.append(peak_memory(contestant))
        fetching.append(statistics.median(contestant.fetching() for _ in range(BATCHES)))
    rates: list[list[float]] = [[] for _ in contestants]
    tops: dict[str, list[float]] = {name: [] for name in products}
    for turn in range(turns):
        for name, product in products.items():
            tops[name].append(product())
        for number, contestant in enumerate(contestants):
            if reporter:
                stage = f"{contestant.objective} {contestant.name}"
                reporter.report(stage, turn * len(contestants) + number + 1, turns * len(contestants))
            (free_as_usual if contestant.side == PEER else keep_freed_memory)()  # as each is without the other
            for _ in range(SETTLING):
                contestant.step()
            wait(device)
            started = time.perf_counter()
            for _ in range(steps):
                contestant.step()
            wait(device)
            rates[number].append(steps * batch / (time.perf_counter() - started))
    top = {name: statistics.median(values) for name, values in tops.items()}
    speeds = []
    for contestant, rate, mb, work, fetched in zip(contestants, rates, memory, flops, fetching, strict=True):
        median = statistics.median(rate)
        speeds.append(Speed(
            contestant.objective, contestant.side, **asdict(contestant.how), images_per_second=round(median, 2),
            spread=round(_half_quartiles(rate), 2), memory_mb=round(mb, 1), gflops_per_image=round(work / 1e9, 4),
            ceiling_share=round(median * work / top[contestant.how.precision], 4),
            data_share=round(fetched * median / batch, 4),
        ))
    return speeds, _ratios(contestants, rates), top


def _ratios(contestants: Sequence[Contestant], rates: Sequence[Sequence[float]]) -> list[Ratio]:
    """Each of ours over mmpretrain's of its objective, and over the first objective's that computes alike."""
    pairs = list(zip(contestants, rates, strict=True))
    first = contestants[0].objective
    found = []
    for one, mine in pairs:
        for other, theirs in pairs:
            beside_mmpretrain = other.side == PEER and other.objective == one.objective
            beside_first = (other.side, other.objective, other.how) == (OURS, first, one.how) and one.objective != first
            if one.side == OURS and (beside_mmpretrain or beside_first):
                low, middle, high = _quartiles([a / b for a, b in zip(mine, theirs, strict=True)])
                peer = other.name if beside_mmpretrain else f"{first} {other.name}"
                found.append(Ratio(one.objective, one.name, peer, round(middle, 3), round(low, 3), round(high, 3)))
    return found


def _quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    if len(values) < 2:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def _half_quartiles(values: Sequence[float]) -> float:
    low, _, high = _quartiles(values)
    return (high - low) / 2


def record(
    speeds: Sequence[Speed], ratios: Sequence[Ratio], tops: Mapping[str, float], pretraining: Pretraining, batch: int,
    device: str, steps: int, turns: int,
) -> dict[str, Any]:
    """What is kept of a measurement.

    Beside the rows, for programs: ``img_per_s``, ``share_of_ceiling`` and ``peak_memory_bytes`` of the first of ours,
    and ``peer_img_per_s`` of the first of mmpretrain's (null where there is none).
    """
    first = next(speed for speed in speeds if speed.side == OURS)
    beside = [speed.images_per_second for speed in speeds if speed.side == PEER]
    return {
        "format": 2, "suite": pretraining.suite.name, "model": pretraining.suite.model,
        "kwargs": dict(pretraining.suite.kwargs), "input_size": pretraining.suite.input_size, "batch": batch,
        "steps": steps, "turns": turns, "threads": torch.get_num_threads(),
        "img_per_s": first.images_per_second, "peer_img_per_s": beside[0] if beside else None,
        "share_of_ceiling": first.ceiling_share, "peak_memory_bytes": round(first.memory_mb * 2**20),
        "ceiling_gflops": {name: round(top / 1e9, 1) for name, top in tops.items()},
        "processor_multiplies_bf16": multiplies_bf16(),
        "rows": [asdict(speed) for speed in speeds], "ratios": [asdict(ratio) for ratio in ratios],
        "environment": environment(device),
    }
