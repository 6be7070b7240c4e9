"""Depth: mmseg's DepthEstimator, linear or the head of 2205.13543, SiLog; metrics per picture, averaged."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from mmcv.transforms import BaseTransform
from mmseg.datasets import BaseSegDataset
from mmseg.evaluation.metrics.depth_metric import DepthMetric as MmsegDepthMetric
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.models.utils import resize
from mmseg.registry import DATASETS, METRICS, MODELS, TRANSFORMS
from torch import Tensor, nn

from downstream import attentive, common, depth_lists, engine, frozen, grid
from downstream.dense import LinearDenseMixin
from downstream.task import Job, Outcome, TaskError

MIN_DEPTH = 1e-3  # metres: below it a pixel counts as invalid (SwinTransformer/MIM-Depth-Estimation)
# Shares of height and width that are scored: top, bottom, left, right (SwinTransformer/MIM-Depth-Estimation).
CROPS = {
    None: None,
    "eigen": (45 / 480, 471 / 480, 41 / 640, 601 / 640),  # rows 45:471, columns 41:601 of 640 x 480
    "garg": (0.40810811, 0.99189189, 0.03594771, 0.96405229),
}
KB_CROP = (352, 1216)  # KITTI: the bottom middle, where the sensor reaches
HEADS = ("linear", "deconv")
DEFAULTS = {
    "input_size": 64, "epochs": 8, "batch_size": 32, "lr": [4e-3, 1.6e-2], "upsample": 4, "head": "linear",
    "crop_size": None, "colour": False, "cut_depth": 0.0, "flip_test": False, "window": None, "window_stride": None,
    "imagenet_norm": True,
}


def settings_of(job: Job) -> dict[str, Any]:
    """The settings of :func:`evaluate` with their defaults.

    Raises:
        TaskError: one that the task does not know or take.
    """
    chosen = engine.settings(job, **DEFAULTS)
    engine.one_of(job, chosen, "head", HEADS)
    return chosen


def evaluate(job: Job) -> Outcome:
    """NYUv2 layout of BTS, and KITTI's: lists of "rgb.jpg depth.png"; 16-bit depth, 0 = invalid.

    ``data``: root, train_list, test_list, max_depth (m), depth_scale (units per metre), crop (None, "eigen" or "garg":
    the part that is scored), kb_crop (KITTI: pictures are cut to 352 x 1216 first).

    ``head``: "linear", or "deconv", the official head of 2205.13543 (last stage only). ``crop_size``: training takes
    random crops of that size from whole pictures, the test whole pictures; None: pictures at ``input_size``.
    ``colour`` and ``cut_depth`` (share of the samples) augment. ``flip_test`` averages with the mirrored picture,
    ``window`` (height, width) moved by ``window_stride`` averages windows. ``imagenet_norm`` False: pixels from 0 to 1.
    """
    chosen = settings_of(job)
    if job.data.get("crop") not in CROPS:
        raise TaskError(f"depth: crop {job.data['crop']!r} is not one of None, 'eigen', 'garg'")
    found = engine.run(job, recipe(job, chosen), chosen)
    numbers = found.numbers
    shares = {name: 100 * numbers[name] for name in ("d1", "d2", "d3")}
    metrics = {**shares, **{name: numbers[name] for name in ("rmse", "abs_rel", "log10")}}
    return Outcome(metrics, found.seen, {"rmse": found.metric.per_item}, found.chosen)


@DATASETS.register_module()
class DepthList(BaseSegDataset):
    """Pictures with depth from a list file of BTS's form; see :data:`downstream.depth_lists.FOLDERS`."""

    METAINFO = {"classes": ("depth",), "palette": [[0, 0, 0]]}  # noqa: RUF012 (mmengine copies it)

    def load_data_list(self) -> list[dict]:
        """One entry a line of the list.

        Raises:
            TaskError: a line without two paths; MissingData: a file that is not there.
        """
        listing, bases = Path(self.ann_file), depth_lists.folders(Path(self.data_root))
        rows = []
        for number, *names in depth_lists.named(listing):
            picture, depth = (depth_lists.find(name, bases, listing, number) for name in names)
            rows.append({"img_path": str(picture), "depth_map_path": str(depth), "seg_fields": [],
                         "label_map": None, "reduce_zero_label": False})
        if not rows:
            raise TaskError(f"{listing} is empty; list a picture and its depth map a line")
        return rows


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


@MODELS.register_module()
class DeconvDepthHead(LinearDepthHead):
    """The official head of 2205.13543 on the last map (SwinTransformer/MIM-Depth-Estimation: models/model.py).

    2x2 deconvolutions of 32 channels (BN, ReLU) to stride 4, three from Swin's stride of 32; a 3x3 convolution to
    ``width`` (BN, ReLU); twice the size by bilinear interpolation, twice; a 3x3 convolution, ReLU and a 3x3 convolution
    to one channel. Weights start at std .001.
    """

    def __init__(self, width: int, deconvolutions: int, **kwargs: Any) -> None:
        super().__init__(upsample=1, **kwargs)
        layers: list[nn.Module] = []
        channels = self.channels
        for _ in range(deconvolutions):
            layers += [nn.ConvTranspose2d(channels, 32, 2, stride=2, bias=False), nn.BatchNorm2d(32), nn.ReLU()]
            channels = 32
        layers += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
        layers += [nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False) for _ in range(2)]
        layers += [nn.Conv2d(width, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, 1, 3, padding=1)]
        self.conv_seg = nn.Sequential(*layers)
        for module in self.conv_seg:
            if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
                nn.init.normal_(module.weight, std=1e-3)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def loss_by_feat(self, seg_logits: Tensor, batch_data_samples: list) -> dict[str, Tensor]:
        """SiLog over the valid pixels of the whole batch, as the official code has it."""
        truth = torch.stack([sample.gt_depth_map.data for sample in batch_data_samples])
        metres = resize(seg_logits, size=truth.shape[2:], mode="bilinear", align_corners=False)
        return {"loss_depth": self.loss_decode(metres.reshape(1, -1), truth.reshape(1, -1))}


@TRANSFORMS.register_module()
class CutDense(BaseTransform):
    """Picture and depth cut to (height, width) pixels: at random, or ``bottom``: the bottom rows, the middle columns.

    Raises:
        TaskError: the picture is smaller.
    """

    def __init__(self, size: tuple[int, int], bottom: bool = False) -> None:
        self.height, self.width, self.bottom = *size, bottom

    def transform(self, results: dict) -> dict:
        spare = [have - want for have, want in zip(results["img"].shape, (self.height, self.width), strict=False)]
        if min(spare) < 0:
            raise TaskError(
                f"{results['img_path']} is smaller than the crop of {self.height} x {self.width}; lower crop_size"
            )
        top, left = spare[0], spare[1] // 2
        if not self.bottom:
            top, left = (np.random.randint(0, room + 1) for room in spare)
        for key in ("img", "gt_depth_map"):
            results[key] = np.ascontiguousarray(results[key][top : top + self.height, left : left + self.width])
        results["img_shape"] = results["ori_shape"] = (self.height, self.width)
        return results


@TRANSFORMS.register_module()
class CutDepth(BaseTransform):
    """Vertical CutDepth: on a ``share`` of the samples a band of all rows shows the depth instead of the picture.

    From a left edge at random, as wide as a random share, at most ``width``, of what is right of it. The band holds the
    files' own numbers (``scale`` of them a metre) modulo 256 in all three channels, as where the official loaders
    (vinvino02/GLPDepth, SwinTransformer/MIM-Depth-Estimation) copy them into a picture of bytes. Those take every
    fourth sample of each of their processes; here each is drawn, .25 on average.
    """

    def __init__(self, share: float, scale: float, width: float = 0.75) -> None:
        self.share, self.scale, self.width = share, scale, width

    def transform(self, results: dict) -> dict:
        if np.random.rand() >= self.share:
            return results
        columns = results["img"].shape[1]
        start, extent = np.random.rand(2) * (1, self.width)
        left = int(start * columns)
        band = slice(left, left + int(max((columns - start * columns) * extent, 1)))
        units = np.rint(results["gt_depth_map"][:, band] * self.scale).astype(np.int64).astype(np.uint8)
        results["img"] = results["img"].copy()
        results["img"][:, band] = units[..., None]
        return results


@TRANSFORMS.register_module()
class ColourJitter(BaseTransform):
    """Brightness and contrast, gamma, hue, saturation and value, each with probability one half, R, G, B in and out.

    Ranges of albumentations' defaults, which the official code takes: ±.2, ±.2, gamma .8 to 1.2, ±20, ±30, ±20.
    """

    def transform(self, results: dict) -> dict:
        picture = results["img"].astype(np.float32)
        if np.random.rand() < 0.5:
            contrast, brightness = 1 + np.random.uniform(-0.2, 0.2, 2)
            picture = picture * contrast + 255 * (brightness - 1)
        if np.random.rand() < 0.5:
            picture = 255 * (picture.clip(0, 255) / 255) ** np.random.uniform(0.8, 1.2)
        picture = picture.clip(0, 255).astype(np.uint8)
        if np.random.rand() < 0.5:
            hsv = cv2.cvtColor(picture, cv2.COLOR_RGB2HSV).astype(np.float32)
            hsv += np.random.uniform(-1, 1, 3) * (20, 30, 20)
            hsv[..., 0] %= 180
            picture = cv2.cvtColor(hsv.clip(0, 255).astype(np.uint8), cv2.COLOR_HSV2RGB)
        results["img"] = picture
        return results


@METRICS.register_module()
class PictureDepthMetric(MmsegDepthMetric):
    """mmseg's depth metric (per picture, then averaged); keeps each picture's RMSE, leaves out those without depth.

    Args:
        crop: a key of :data:`CROPS`, the part of the picture that is scored.
    """

    def __init__(self, crop: str | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.crop = CROPS[crop]
        self.per_item: list[float] = []  # filled by the process that computes the metrics

    def _get_eval_mask(self, gt_depth: Tensor) -> Tensor:
        valid = (gt_depth > self.min_depth_eval) & (gt_depth < self.max_depth_eval)
        if self.crop is None:
            return valid
        height, width = gt_depth.shape
        sides = zip(self.crop, (height, height, width, width), strict=True)
        top, bottom, left, right = (int(share * side + 1e-6) for share, side in sides)
        inside = torch.zeros_like(valid)
        inside[top:bottom, left:right] = True
        return valid & inside

    def compute_metrics(self, results: list) -> dict[str, float]:
        scored = [(truth, metres) for truth, metres in results if len(truth)]
        if not scored:
            raise TaskError("depth: no test picture has a valid pixel; check max_depth, depth_scale and crop")
        self.per_item = [self._calc_all_metrics(truth, metres)["rmse"] for truth, metres in scored]
        return super().compute_metrics(scored)


def parts(job: Job, chosen: dict[str, Any]) -> dict[str, Any]:
    """Backbone, neck and head of the protocol."""
    in_one_pass = engine.gridded(job, chosen)
    if in_one_pass and chosen["head"] != "linear":
        raise TaskError(f"depth: a grid of layers needs head linear, not {chosen['head']}; set layers=None")
    widths, backbone = engine.channels(job, chosen), engine.backbone(job, chosen)
    shared = {"in_index": 0, "dropout_ratio": 0.0, "max_depth": float(job.data["max_depth"]),
              "loss_decode": {"type": "SiLogLoss"}, "align_corners": False}
    if chosen["head"] == "deconv" and job.protocol != "attentive":
        last = widths[-1]
        return {"backbone": backbone, "decode_head": {
            "type": "mmseg.DeconvDepthHead", "in_channels": last, "channels": last, **shared, "in_index": -1,
            # Swin: the width of the first stage, an eighth of the last one's; a ViT has one width
            "width": last // 8 if engine.hierarchical(job, chosen) else last // 4,
            "deconvolutions": max(0, round(math.log2(engine.stride(job, chosen) / 4))),
        }}
    neck, width = {"type": "mmengine.FeatureNorm", "channels": widths}, sum(widths)
    if job.protocol == "attentive":
        neck, width = attentive.blocks(chosen, widths)
    head = {"type": "mmseg.LinearDepthHead", "in_channels": width, "channels": width, "upsample": chosen["upsample"],
            **shared}
    if in_one_pass:
        neck, head = grid.of_heads(head, widths, chosen["layers"], frozen.rates_of(chosen))
    return {"backbone": backbone, "neck": neck, "decode_head": head}


def dataset_of(section: dict[str, Any], part: str, pipeline: list[dict]) -> dict[str, Any]:
    """The data set of "train_list" or "test_list", whose ``pipeline`` follows after picture and depth have been read.

    Raises:
        MissingData: the list is not there.
    """
    common.need(Path(section["root"]) / section[part], "depth")
    read = [
        {"type": "mmengine.ReadPicture"},
        {"type": "mmseg.ReadDepth", "scale": section["depth_scale"], "max_depth": float(section["max_depth"])},
    ]
    if section.get("kb_crop"):
        read.append({"type": "mmseg.CutDense", "size": KB_CROP, "bottom": True})
    return {
        "type": "mmseg.DepthList", "data_root": section["root"], "ann_file": section[part], "data_prefix": {},
        "pipeline": read + pipeline, "test_mode": part == "test_list",
    }


def recipe(job: Job, chosen: dict) -> engine.Recipe:
    """The model and data of the task in mmseg's terms."""
    size, data_section = common.pair(chosen["input_size"]), job.data
    max_depth = float(data_section["max_depth"])
    fit = [{"type": "mmengine.AreaResize", "size": size}]
    small = [{"type": "mmengine.NearestAnnotation", "key": "gt_depth_map", "size": size}]
    flip = [{"type": "mmengine.FlipDense", "key": "gt_depth_map"}]
    pack = [{"type": "mmseg.PackSegInputs"}]
    train, test, augment = fit + small, fit, fit + small + flip
    if chosen["crop_size"] is not None:
        size = common.pair(chosen["crop_size"])
        train = augment = [*flip, {"type": "mmseg.CutDense", "size": size}]
        test = []
    if chosen["cut_depth"]:  # the official order: before flip, crop and colours
        cut = {"type": "mmseg.CutDepth", "share": chosen["cut_depth"], "scale": data_section["depth_scale"]}
        augment = [cut, *augment]
    if chosen["colour"]:
        augment = [*augment, {"type": "mmseg.ColourJitter"}]
    test_cfg: dict[str, Any] = {"mode": "whole"}
    if chosen["flip_test"]:
        window = common.pair(chosen["window"] or size)
        test_cfg = {"mode": "slide_flip", "crop_size": window, "stride": common.pair(chosen["window_stride"] or window)}
    pixels = {} if chosen["imagenet_norm"] else {"mean": [0.0] * 3, "std": [255.0] * 3}

    return engine.Recipe(
        scope="mmseg",
        model={
            "type": "mmseg.DepthEstimator", **parts(job, chosen),
            "data_preprocessor": common.preprocessor("mmseg.SegDataPreProcessor", size=size, **pixels),
            "test_cfg": test_cfg,
        },
        train=dataset_of(data_section, "train_list", train + pack),
        train_augmented=dataset_of(data_section, "train_list", augment + pack),
        test=dataset_of(data_section, "test_list", test + pack),
        metric={
            "type": "mmseg.PictureDepthMetric", "min_depth_eval": MIN_DEPTH, "max_depth_eval": max_depth,
            "crop": data_section.get("crop"),
        },
    )
