"""One-pass evaluation as an mmengine metric, for evaluators and runners of OpenMMLab."""

from __future__ import annotations

from typing import Any

from mmdet.registry import METRICS
from mmengine.evaluator import BaseMetric

from downstream.tracking.metrics import Scores, Track, score_tracks


@METRICS.register_module()
class OnePassEvaluation(BaseMetric):
    """Collects whole tracks and returns SUC, P, NP, NP_mean, AO, SR50 and SR75 in percent.

    Args:
        strict: the success curve's convention, see :func:`downstream.tracking.metrics.success_curve`.
    """

    default_prefix = None

    def __init__(self, strict: bool = False, collect_device: str = "cpu", prefix: str | None = None) -> None:
        super().__init__(collect_device=collect_device, prefix=prefix)
        self.strict = strict
        self.scores: Scores | None = None  # of the last evaluation, with the per-sequence values

    def process(self, data_batch: Any, data_samples: list[dict[str, Track]]) -> None:
        """``data_samples`` holds one ``{"track": Track}`` per video; ``data_batch`` is not needed."""
        self.results.extend(sample["track"] for sample in data_samples)

    def compute_metrics(self, results: list[Track]) -> dict[str, float]:
        self.scores = score_tracks(results, self.strict)
        return self.scores.means
