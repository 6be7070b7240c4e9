"""Nearest neighbours in a frozen backbone's features: protocol ``knn`` of classification and segmentation.

Classification as in DINO (facebookresearch/dino: eval_knn.py): cosine of the mean of the tokens, votes weighted by
exp(cosine / temperature). Segmentation by patch, after Balažević et al. 2023 (2306.01667): a memory of training
patches with the distribution of their labels; a test patch takes the mean of its neighbours', weighted likewise.
"""

from __future__ import annotations

import json
from typing import Any

import torch
from mmengine.model import BaseModel
from torch import Tensor, nn
from torch.utils.data import Dataset

from downstream import features
from downstream.frozen import parts
from downstream.task import Job, TaskError

COSINES = 2**25  # held at a time: 128 MiB


class Memory(nn.Module):
    """Normalised features (M, D) with what is known of them: labels (M,), or shares of the classes (M, C)."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.centre = Centre()
        self.num_classes, self.k, self.temperature = num_classes, 1, 1.0
        self.register_buffer("keys", torch.zeros(0, 0), persistent=False)
        self.register_buffer("values", torch.zeros(0), persistent=False)

    def fill(self, keys: Tensor, values: Tensor) -> None:
        self.keys, self.values = keys, values

    def nearest(self, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Cosines and indices (Q, k) of the k nearest, best first, a few queries at a time."""
        found = [
            (part @ self.keys.T).topk(min(k, len(self.keys)))
            for part in queries.split(max(1, COSINES // max(1, len(self.keys))))
        ]
        return torch.cat([f.values for f in found]), torch.cat([f.indices for f in found])

    def vote(self, cosines: Tensor, indices: Tensor, temperature: float) -> Tensor:
        """Weighted mean of the neighbours' values: (Q, C)."""
        weights = (cosines / temperature).softmax(-1)
        if self.values.ndim == 2:
            return torch.einsum("qk,qkc->qc", weights, self.values[indices])
        votes = weights.new_zeros(len(weights), self.num_classes)
        return votes.scatter_add_(1, self.values[indices], weights)

    def forward(self, queries: Tensor) -> Tensor:
        """Features (Q, D) as the backbone gives them -> shares of the classes (Q, C)."""
        queries = self.centre(queries)
        return torch.cat([self.vote(*self.nearest(q, self.k), self.temperature) for q in queries.split(4096)])


class Centre(nn.Module):
    """Features less their mean, over their deviation, as measured on the training set; the identity until then.

    What all features share makes every cosine nearly one: masked image models keep a large common part that DINO's
    features do not have. (The heads of the other protocols start with the same norm.)
    """

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(1), persistent=False)
        self.register_buffer("std", torch.ones(1), persistent=False)

    def measure(self, keys: Tensor) -> None:
        """From features (M, D)."""
        self.std, self.mean = torch.std_mean(keys, 0, correction=0)
        self.std = self.std.clamp(min=1e-6)

    def forward(self, keys: Tensor) -> Tensor:
        """(Q, D) -> (Q, D) of length 1."""
        return nn.functional.normalize((keys - self.mean) / self.std, dim=1)


def patch_shares(labels: Tensor, size: tuple[int, int], num_classes: int, ignore: int) -> Tensor:
    """Labels (H, W) -> the share of each class in each of h × w patches, (h·w, C); ignored pixels do not count."""
    (height, width), (rows, columns) = labels.shape, size
    row = torch.arange(height, device=labels.device) * rows // height
    column = torch.arange(width, device=labels.device) * columns // width
    patch = row[:, None] * columns + column
    valid = labels != ignore
    index = patch[valid] * num_classes + labels[valid].long()
    counts = torch.bincount(index, minlength=rows * columns * num_classes).view(-1, num_classes).float()
    return counts / counts.sum(1, keepdim=True).clamp(min=1)


@torch.no_grad()
def fit(model: BaseModel, data: Dataset, job: Job, chosen: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    """Fill the head's memory from ``data``; ``k`` and ``temperature`` are chosen on the held-out part.

    The head says by ``rows(maps, samples)`` what of a picture is remembered. At most ``memory`` rows are kept (None:
    all), as many of each picture, drawn at random, at least one of each.

    Returns:
        Pictures seen, and the chosen values.
    """
    head = model.head if hasattr(model, "head") else model.decode_head
    limit, generator = chosen["memory"], torch.Generator().manual_seed(job.seed)
    each = None if limit is None else max(1, limit // len(data))
    keys, values, pictures, number = [], [], [], 0
    for maps, samples in features.each_batch(model, data, job, chosen["num_workers"]):
        for key, value in head.rows(maps, samples):
            if each is not None and len(key) > each:
                kept = torch.randperm(len(key), generator=generator)[:each].to(key.device)
                key, value = key[kept], value[kept]
            keys.append(key)
            values.append(value)
            pictures += [number] * len(key)
            number += 1
    key, value = torch.cat(keys), torch.cat(values)
    if not len(key):
        raise TaskError(f"{job.task}: no training picture has a labelled patch; check the annotations")
    if chosen["standardise"]:
        head.memory.centre.measure(key)
    key = head.memory.centre(key)
    found = _choose(head, key, value, torch.tensor(pictures, device=key.device), number, chosen)
    rows, (head.memory.k, head.memory.temperature) = found
    head.memory.fill(key, value)
    (job.work_dir / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return number, {"k": head.memory.k, "temperature": head.memory.temperature, "memory": len(key)}


def _choose(
    head: Any, key: Tensor, value: Tensor, pictures: Tensor, number: int, chosen: dict[str, Any]
) -> tuple[list[dict[str, Any]], tuple[int, float]]:
    ks, temperatures = (_listed(chosen[name]) for name in ("k", "temperature"))
    if len(ks) == len(temperatures) == 1:
        return [{"k": ks[0], "temperature": temperatures[0]}], (ks[0], temperatures[0])
    held = torch.isin(pictures, torch.tensor(parts(number)[1], device=pictures.device))
    memory = head.memory
    memory.fill(key[~held], value[~held])
    cosines, indices = memory.nearest(key[held], max(ks))
    rows = []
    for k in ks:
        for temperature in temperatures:
            votes = [memory.vote(c, i, temperature) for c, i in
                     zip(cosines[:, :k].split(4096), indices[:, :k].split(4096), strict=True)]
            score = agreement(torch.cat([v.argmax(1) for v in votes]), value[held], memory.num_classes, head.balanced)
            rows.append({"k": k, "temperature": temperature, "held_out_score": round(score, 6)})
    best = max(rows, key=lambda row: row["held_out_score"])
    return rows, (best["k"], best["temperature"])


def agreement(guess: Tensor, truth: Tensor, num_classes: int, balanced: bool) -> float:
    """Share of hits, or ``balanced`` the mean IoU over the classes that occur, of guesses (Q,).

    ``truth`` holds labels (Q,) or shares of the classes (Q, C), whose hits count by their share.
    """
    shares = truth if truth.ndim == 2 else nn.functional.one_hot(truth, num_classes).float()
    hits = torch.zeros(num_classes, device=guess.device).scatter_add_(0, guess, shares.gather(1, guess[:, None])[:, 0])
    if not balanced:
        return (hits.sum() / len(guess)).item()
    union = shares.sum(0) + torch.bincount(guess, minlength=num_classes) - hits
    return (hits / union)[union > 0].mean().item()


def _listed(value: Any) -> list:
    return list(value) if isinstance(value, (list, tuple)) else [value]
