"""Depth: mmseg's DepthEstimator, linear from a token to its patch's depths, SiLog; metrics per picture, averaged."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from mmseg.datasets import BaseSegDataset
from mmseg.evaluation.metrics.depth_metric import DepthMetric as MmsegDepthMetric
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.models.utils import resize
from mmseg.registry import DATASETS, METRICS, MODELS, TRANSFORMS
from torch import Tensor

from downstream import common, engine
from downstream.dense import LinearDenseMixin
from downstream.task import Job, Outcome, TaskError

MIN_DEPTH = 1e-3  # metres: below it a pixel counts as invalid (SwinTransformer/MIM-Depth-Estimation)
CROPS = {None: None, "eigen": "nyu_crop"}  # rows 45:471, columns 41:601 of 640 x 480


def evaluate(job: Job) -> Outcome:
    """NYUv2 layout of BTS: lists of "/scene/rgb.jpg /scene/depth.png"; 16-bit depth, 0 = invalid.

    ``data``: root, train_list, test_list, max_depth (m), depth_scale (units per metre), crop (None or "eigen").
    """
    chosen = engine.settings(job, input_size=64, epochs=8, batch_size=32, lr=[4e-3, 1.6e-2], upsample=4)
    if job.data.get("crop") not in CROPS:
        raise TaskError(f"depth: crop {job.data['crop']!r} is neither None nor 'eigen'")
    for key in ("train_list", "test_list"):
        common.need(Path(job.data["root"]) / job.data[key], "depth")
    outcome, seen, metric = engine.run(job, recipe(job, chosen), chosen)
    metrics = {"rmse": outcome["rmse"], "d1": 100 * outcome["d1"], "abs_rel": outcome["abs_rel"]}
    return Outcome(metrics, seen, {"rmse": metric.per_item})


@DATASETS.register_module()
class DepthList(BaseSegDataset):
    """Pictures with depth from a list file of BTS's form; paths start at the data root or at its first sub-folder."""

    METAINFO = {"classes": ("depth",), "palette": [[0, 0, 0]]}  # noqa: RUF012 (mmengine copies it)

    def load_data_list(self) -> list[dict]:
        """One entry a line of the list.

        Raises:
            TaskError: a line without two paths, or a file that is not there.
        """
        rows = []
        listing = Path(self.ann_file)
        for number, line in enumerate(common.read_text(listing).splitlines(), 1):
            if not line.strip():
                continue
            paths = line.split()[:2]
            if len(paths) < 2:
                raise TaskError(f"{listing} line {number}: a picture and a depth map are needed, not {line!r}")
            picture, depth = (self._find(path, listing, number) for path in paths)
            rows.append({"img_path": str(picture), "depth_map_path": str(depth), "seg_fields": [],
                         "label_map": None, "reduce_zero_label": False})
        if not rows:
            raise TaskError(f"{listing} is empty; list a picture and its depth map a line")
        return rows

    def _find(self, name: str, listing: Path, number: int) -> Path:
        for base in self._bases():
            path = common.inside(base, name.lstrip("/"), f"{listing} line {number}")
            if path.is_file():
                return path
        raise TaskError(f"{listing} line {number} names {name}, which is not under {self.data_root}")

    def _bases(self) -> list[Path]:
        root = Path(self.data_root)
        folders = [root, root / "nyu_depth_v2", root / "nyu_depth_v2" / "official_splits" / "test"]
        return [folder for folder in folders if folder.is_dir()]


@TRANSFORMS.register_module()
class ReadDepth:
    """``depth_map_path`` -> ``gt_depth_map`` (H, W) float32 in metres; 0 where invalid or beyond ``max_depth``."""

    def __init__(self, scale: float, max_depth: float) -> None:
        self.scale, self.max_depth = scale, max_depth

    def __call__(self, results: dict) -> dict:
        path = results["depth_map_path"]
        depth = common.read_picture(path, "labels").astype(np.float32) / self.scale
        if depth.ndim != 2 or depth.shape != tuple(results["ori_shape"]):
            raise TaskError(f"{path} has shape {depth.shape}, its picture {tuple(results['ori_shape'])}")
        depth[depth > self.max_depth] = 0
        results["gt_depth_map"] = depth
        results["seg_fields"].append("gt_depth_map")
        return results


@MODELS.register_module()
class LinearDepthHead(LinearDenseMixin, BaseDecodeHead):
    """One linear layer to the depths of a token's sub-patches: sigmoid x ``max_depth`` (MIM-Depth-Estimation)."""

    def __init__(self, max_depth: float, **kwargs) -> None:
        super().__init__(num_classes=1, out_channels=1, threshold=0.0, **kwargs)
        self.max_depth = max_depth

    def forward(self, inputs: tuple[Tensor, ...]) -> Tensor:
        """One map (B, D, H, W) -> metres (B, 1, upsample·H, upsample·W), above :data:`MIN_DEPTH`."""
        return super().forward(inputs).sigmoid() * self.max_depth + MIN_DEPTH

    def loss_by_feat(self, seg_logits: Tensor, batch_data_samples: list) -> dict[str, Tensor]:
        """SiLog over valid pixels, at the size of the ground truth."""
        truth = torch.stack([sample.gt_depth_map.data for sample in batch_data_samples])
        metres = resize(seg_logits, size=truth.shape[2:], mode="bilinear", align_corners=False)
        return {"loss_depth": self.loss_decode(metres, truth)}

    def predict_by_feat(self, seg_logits: Tensor, batch_img_metas: list[dict]) -> Tensor:
        """Metres at the size of the network's input."""
        size = batch_img_metas[0]["img_shape"]
        return resize(seg_logits, size=size, mode="bilinear", align_corners=False)


@METRICS.register_module()
class PictureDepthMetric(MmsegDepthMetric):
    """mmseg's depth metric (per picture, then averaged); keeps each picture's RMSE, leaves out those without depth."""

    def compute_metrics(self, results: list) -> dict[str, float]:
        scored = [(truth, metres) for truth, metres in results if len(truth)]
        if not scored:
            raise TaskError("depth: no test picture has a valid pixel; check max_depth, depth_scale and crop")
        self.per_item = [self._calc_all_metrics(truth, metres)["rmse"] for truth, metres in scored]
        return super().compute_metrics(scored)


def recipe(job: Job, chosen: dict) -> engine.Recipe:
    """The model and data of the task in mmseg's terms."""
    widths = engine.channels(job, chosen)
    size = common.pair(chosen["input_size"])
    data_section = job.data
    max_depth = float(data_section["max_depth"])
    read = [
        {"type": "mmengine.ReadPicture"},
        {"type": "mmseg.ReadDepth", "scale": data_section["depth_scale"], "max_depth": max_depth},
        {"type": "mmengine.AreaResize", "size": size},
    ]
    small = [{"type": "mmengine.NearestAnnotation", "key": "gt_depth_map", "size": size}]
    flip = [{"type": "mmengine.FlipDense", "key": "gt_depth_map"}]
    pack = [{"type": "mmseg.PackSegInputs"}]

    def data(part: str, pipeline: list[dict]) -> dict:
        return {
            "type": "mmseg.DepthList", "data_root": data_section["root"], "ann_file": data_section[part],
            "data_prefix": {}, "pipeline": pipeline, "test_mode": part == "test_list",
        }

    return engine.Recipe(
        scope="mmseg",
        model={
            "type": "mmseg.DepthEstimator",
            "backbone": engine.backbone(job, chosen),
            "neck": {"type": "mmengine.FeatureNorm", "channels": widths},
            "decode_head": {
                "type": "mmseg.LinearDepthHead", "in_channels": sum(widths), "channels": sum(widths), "in_index": 0,
                "upsample": chosen["upsample"], "dropout_ratio": 0.0, "max_depth": max_depth,
                "loss_decode": {"type": "SiLogLoss"}, "align_corners": False,
            },
            "data_preprocessor": common.preprocessor("mmseg.SegDataPreProcessor", size=size),
            "test_cfg": {"mode": "whole"},
        },
        train=data("train_list", read + small + pack),
        train_augmented=data("train_list", read + small + flip + pack),
        test=data("test_list", read + pack),
        metric={
            "type": "mmseg.PictureDepthMetric",
            "min_depth_eval": MIN_DEPTH, "max_depth_eval": max_depth, "crop_type": CROPS[data_section.get("crop")],
        },
    )
