"""One backbone over a stream of pictures: every number of every layer, from running sums."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from downstream.analysis.attention import Convention, head_sums, uniform_distance, uniform_entropy
from downstream.analysis.features import RunningMoments, RunningSpectrum
from downstream.analysis.probe import AnalysisError, Layout, Probe
from downstream.analysis.similarity import FEWEST, RunningCKA, gram

VERSION = 1  # of the numbers: raise it when the same backbone and pictures give others
FEATURES = ("tokens", "mean")
ESTIMATORS = ("minibatch", "exact")
EXACT_BYTES = 2**30  # what exact CKA may keep of features
SEVERAL = 3  # last layers in which supervised heads lose their diversity (Xie et al., abstract)
NO_ATTENTION = "no attention: distance, entropy and head diversity do not apply"


@dataclass(frozen=True)
class Settings:
    """How to measure. Which of these Xie et al. chose is not known.

    Attributes:
        convention: of attention.
        cka_features: a picture's features are all patch tokens of a layer, flattened ("tokens", after Raghu et al.,
            NeurIPS 2021), or their mean ("mean").
        cka: "minibatch", unbiased and streamed; or "exact", which keeps the features of all pictures and is refused
            beyond 1 GiB of them.
    """

    convention: Convention = field(default_factory=Convention)
    cka_features: str = "tokens"
    cka: str = "minibatch"

    def __post_init__(self) -> None:
        for name, known in (("cka_features", FEATURES), ("cka", ESTIMATORS)):
            if getattr(self, name) not in known:
                raise AnalysisError(f"{name}: {getattr(self, name)!r} is not one of {', '.join(known)}")

    @property
    def name(self) -> str:
        """All conventions in words."""
        return f"{self.convention.name}; {self.cka} CKA of {'all' if self.cka_features == 'tokens' else 'mean'} tokens"

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "name": self.name}


class _Layer:
    def __init__(self, name: str) -> None:
        self.name = name
        self.attention: dict[str, Tensor] | None = None
        self.layout: Layout | None = None
        self.moments, self.spectrum = RunningMoments(), RunningSpectrum()
        self.shape, self.stride = (0, 0, 0), 0.0

    def result(self, convention: Convention) -> dict[str, Any]:
        heads = None
        if self.attention is not None:
            count = self.attention.pop("queries")
            heads = {key: _plain((sums / count).tolist()) for key, sums in self.attention.items()}
            heads["uniform_distance"] = uniform_distance(self.layout)
            heads["uniform_entropy"] = uniform_entropy(self.layout, convention)
        return {
            "name": self.name, "stride": self.stride, "width": self.shape[0], "grid": list(self.shape[1:]),
            "heads": heads, **self.moments.result(), **self.spectrum.result(),
        }


def analyse(
    net: nn.Module, batches: Iterable[Tensor], settings: Settings | None = None, device: str = "cpu",
    on_grams: Callable[[Tensor], None] | None = None,
) -> dict[str, Any]:
    """Every number of every layer of ``net``.

    Args:
        net: a timm network in evaluation mode, moved to ``device`` here.
        batches: normalised pictures (B, 3, H, W), all batches but the last of one size. Read once, one at a time:
            memory does not grow with their number unless CKA is exact.
        on_grams: called with the Gram matrices (layers, n, n) float64 that CKA compares: once a batch; once for all
            pictures where CKA is exact. For CKA with another backbone over the same batches.

    Returns:
        ``layers``: for each block its name, ``stride`` (pixels), ``width``, ``grid``, ``heads`` (None without
        attention: lists ``distance`` in pixels, ``entropy`` and ``kl``, a number a head, and ``uniform_distance`` and
        ``uniform_entropy``, those of evenly spread attention), ``variance``, ``within``, ``effective_rank``,
        ``high_frequency_share``, ``relative_log_amplitude`` (see :mod:`downstream.analysis.features`).
        ``cka``: (layers × layers) lists; NaN is None. ``pictures``, ``note`` ("" or what does not apply), ``summary``
        (see :func:`summary`).

    Raises:
        AnalysisError: no pictures, fewer than 4 in the first batch, a network of another form, or exact CKA of too
            many features.
    """
    settings = settings or Settings()
    net = net.to(device)
    exact, cka = settings.cka == "exact", RunningCKA(settings.cka == "exact")
    grams: list[Tensor] = []
    kept: list[list[Tensor]] = []
    seen, size = 0, 0

    def on_attention(layer: int, log: Tensor, layout: Layout) -> None:
        sums = {key: value.cpu() for key, value in head_sums(log, layout, settings.convention).items()}
        mine = layers[layer]
        old = mine.attention
        mine.attention = sums if old is None else {key: old[key] + value for key, value in sums.items()}
        mine.layout = layout

    def on_features(layer: int, maps: Tensor, stride: float) -> None:
        mine = layers[layer]
        mine.moments.add(maps)
        mine.spectrum.add(maps)
        mine.shape, mine.stride = tuple(maps.shape[1:]), stride
        flat = maps.flatten(1) if settings.cka_features == "tokens" else maps.mean((2, 3))
        if exact:
            kept[layer].append(flat.cpu())
        else:
            grams.append(gram(flat).cpu())

    with Probe(net, on_attention, on_features) as probe:
        layers = [_Layer(name) for name in probe.names]
        kept = [[] for _ in layers]
        for images in batches:
            if not size and len(images) < FEWEST:
                raise AnalysisError(f"an analysis needs at least {FEWEST} pictures a batch, not {len(images)}")
            size = size or len(images)
            grams.clear()
            probe(images.to(device))
            seen += len(images)
            if not exact and len(images) == size:  # a smaller last batch has other kernels: left out of CKA alone
                _compare(torch.stack(grams), cka, on_grams)
            elif exact and sum(t.nbytes for parts in kept for t in parts) > EXACT_BYTES:
                raise AnalysisError(f"exact CKA of {seen} pictures would keep more than {EXACT_BYTES >> 20} MiB; "
                                    "take fewer pictures, cka_features=mean or the minibatch estimator")
    if not seen:
        raise AnalysisError("no pictures to analyse")
    if exact:
        _compare(torch.stack([gram(torch.cat(parts)) for parts in kept]), cka, on_grams)
    found = [layer.result(settings.convention) for layer in layers]
    note = "" if any(layer["heads"] for layer in found) else NO_ATTENTION
    return {"pictures": seen, "layers": found, "cka": matrix(cka.result()), "note": note, "summary": summary(found)}


def _compare(grams: Tensor, cka: RunningCKA, on_grams: Callable[[Tensor], None] | None) -> None:
    cka.add(grams, grams)
    if on_grams is not None:
        on_grams(grams)


def cross_cka(pairs: Iterable[tuple[Tensor, Tensor]], settings: Settings) -> list[list[float | None]]:
    """CKA between the layers of two backbones from what ``on_grams`` gave for the same batches, in order."""
    running = RunningCKA(settings.cka == "exact")
    for k, l in pairs:  # noqa: E741
        running.add(k, l)
    return matrix(running.result())


def matrix(values: Tensor) -> list[list[float | None]]:
    """A tensor (A, B) as lists for JSON; NaN is None."""
    return [_plain(row) for row in values.tolist()]


def _plain(values: list[float]) -> list[float | None]:
    return [value if math.isfinite(value) else None for value in values]


def summary(layers: list[dict[str, Any]]) -> dict[str, float | None]:
    """A few numbers for a table: of the last block, and of the paper's claims; None where it does not apply.

    ``attention_distance_last`` and ``attention_distance_mean`` (over all layers), in pixels;
    ``attention_distance_relative``: mean over layers of the distance as a share of that of evenly spread attention,
    to compare sizes; ``attention_distance_relative_last3``: that of the last three layers;
    ``attention_entropy_last``; ``head_kl_last3``: mean of the last three layers;
    ``effective_rank_last``; ``variance_within_last``; ``high_frequency_share_last``.
    """
    heads = [layer["heads"] for layer in layers if layer["heads"]]
    last = layers[-1]
    numbers: dict[str, float | None] = dict.fromkeys(
        ("attention_distance_last", "attention_distance_mean", "attention_distance_relative",
         "attention_distance_relative_last3", "attention_entropy_last", "head_kl_last3")
    )
    if heads:
        distances = [_mean(h["distance"]) for h in heads]
        shares = [d / h["uniform_distance"] for d, h in zip(distances, heads, strict=True) if h["uniform_distance"]]
        numbers |= {
            "attention_distance_last": distances[-1], "attention_distance_mean": _mean(distances),
            "attention_distance_relative": _mean(shares),
            "attention_distance_relative_last3": _mean(shares[-SEVERAL:]),
            "attention_entropy_last": _mean(heads[-1]["entropy"]),
            "head_kl_last3": _mean([_mean(h["kl"]) for h in heads[-SEVERAL:]]),
        }
    return numbers | {
        "effective_rank_last": last["effective_rank"], "variance_within_last": last["within"],
        "high_frequency_share_last": last["high_frequency_share"],
    }


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if known else None
