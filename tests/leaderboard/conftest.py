"""A maker of valid records for the tests of this folder."""

from collections.abc import Callable
from typing import Any

import pytest

from leaderboard.analyses import HEADINGS
from leaderboard.records import Record

METRICS = {
    "classification": ("top1", True, "%", 0, 100),
    "segmentation": ("mIoU", True, "%", 0, 100),
    "pose": ("AP", True, "%", 0, 100),
    "depth": ("rmse", False, "m", 0, 1000),
    "tracking": ("SUC", True, "%", 0, 100),
}

MakeRecord = Callable[..., Record]


@pytest.fixture(scope="session")
def make_record() -> MakeRecord:
    """``make(value, **fields)``: a record whose main metric has ``value``; None makes a failed one."""

    def make(value: float | None = 50.0, **changes: Any) -> Record:
        task = changes.get("task", "classification")
        name, higher, unit, low, high = METRICS.get(task, ("score", True, "", 0, 100))
        metric = dict(value=value, higher_is_better=higher, unit=unit, main=True, low=low, high=high)
        fields: dict[str, Any] = dict(
            suite="embedded", budget="default", objective="mae", variant={}, backbone="vit_tiny", task=task,
            task_version=1, protocol="frozen", seed=0,
            status="failed" if value is None else "ok", reason="out of memory" if value is None else None,
            metrics={} if value is None else {name: metric},
            cost=dict(pretrain_images=100_000, pretrain_seconds=60.0, train_images=2_000, seconds=30.0,
                      device="2 CPU cores", flops=1.5e12, peak_memory_bytes=2**30),
            environment=dict(python="3.11", packages={"torch": "2.11"}, git_commit=None, dirty=None, hardware={}),
            fingerprints=dict(cell="c", config="f", data="d", backbone="b"),
            config={"lr": 1e-3, "betas": [0.9, 0.999]},
            started="2025-01-01T00:00:00+00:00", finished="2025-01-01T00:01:00+00:00",
        )
        return Record(**(fields | changes))

    return make


@pytest.fixture(scope="session")
def make_analysis(make_record: MakeRecord) -> MakeRecord:
    """``make(objective, seed, distance=…, kl=…, **fields)``: an analysis of two layers with two heads each.

    The heads look ``distance`` ± 1 px far in the first layer and twice that in the second, of 20 px evenly spread.
    """

    def make(
        objective: str = "mae", seed: int = 0, distance: float | None = 5.0, kl: float = 0.5, **changes: Any
    ) -> Record:
        layers = []
        for n in (1, 2):
            far = None if distance is None else n * distance
            heads = None if far is None else {
                "distance": [far - 1, far + 1], "entropy": [2.0, 3.0], "kl": [kl, kl], "uniform_distance": 20.0,
                "uniform_entropy": 4.0,
            }
            layers.append({
                "name": str(n), "stride": 8.0, "width": 16, "grid": [8, 8], "heads": heads, "variance": 1.0,
                "within": 0.5, "effective_rank": 8.0 * n, "high_frequency_share": None, "relative_log_amplitude": 0.1,
            })
        far = 2.0 * (distance or 0)
        summary = {
            "attention_distance_last": far, "attention_distance_mean": 0.75 * far,
            "attention_distance_relative": 0.75 * far / 20, "attention_distance_relative_last3": 0.75 * far / 20,
            "attention_entropy_last": 2.5, "head_kl_last3": kl,
        } if distance is not None else {}
        summary |= {"effective_rank_last": 16.0, "variance_within_last": 0.5}
        assert set(summary) <= set(HEADINGS)
        metrics = {
            name: dict(value=value, higher_is_better=False, unit="", main=i == 0, low=None, high=None)
            for i, (name, value) in enumerate(summary.items())
        }
        details = {"layers": layers, "cka": [[1.0, 0.4 + 0.1 * seed], [0.4 + 0.1 * seed, 1.0]],
                   "note": "" if distance is not None else "no attention"}
        fields: dict[str, Any] = dict(
            objective=objective, seed=seed, task="backbone", protocol="analysis", metrics=metrics, details=details,
            config={"settings": {"name": "plain", "convention": {"entropy": "nats"}},
                    "images": {"count": 64, "size": 64, "source": "embedded: val"}},
            fingerprints=dict(cell="c", config="f", data="p", backbone=f"{objective}{seed}"),
        )
        return make_record(0.0, **(fields | changes))

    return make
