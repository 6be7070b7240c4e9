"""A maker of valid records for the tests of this folder."""

from collections.abc import Callable
from typing import Any

import pytest

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
