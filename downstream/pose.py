"""Pose: mmpose's TopdownPoseEstimator with a heat-map head on ground-truth boxes; average precision under OKS."""

from __future__ import annotations

import json
from pathlib import Path

from mmpose.datasets.datasets.body import CocoDataset
from mmpose.models.heads import HeatmapHead
from mmpose.registry import DATASETS, MODELS
from torch import Tensor

from downstream import common, engine
from downstream.dense import PatchLinear
from downstream.task import Job, Outcome, TaskError


def evaluate(job: Job) -> Outcome:
    """COCO key-point JSON. ``data``: root, {train,val}_images, {train,val}_annotations, relative to root.

    ``input_size`` is (height, width) of the crop, whose box is padded by 1.25 (mmpose); the heat map is ``upsample``
    times as fine as the tokens. ``head``: "linear", or "classic" (two deconvolutions of 256 channels, ViTPose).
    """
    chosen = engine.settings(
        job, input_size=64, epochs=12, batch_size=32, lr=[4e-3, 1.6e-2], head="linear", upsample=4, sigma=1.5,
        flip_test=True, deconv=(256, 256),
    )
    if chosen["head"] not in ("linear", "classic"):
        raise TaskError(f"pose: head {chosen['head']!r} is neither 'linear' nor 'classic'")
    root = Path(job.data["root"])
    for part in ("train", "val"):
        common.need(root / job.data[f"{part}_images"], "pose")
        common.need(root / job.data[f"{part}_annotations"], "pose")
        check_annotations(root / job.data[f"{part}_annotations"], root / job.data[f"{part}_images"])
    outcome, seen, _ = engine.run(job, recipe(job, chosen), chosen)
    # pycocotools says -1 where a score is not defined: no detection at all
    metrics = {name: 100 * max(0.0, outcome[f"coco/{key}"]) for name, key in
               (("AP", "AP"), ("AP50", "AP .5"), ("AR", "AR"))}
    return Outcome(metrics, seen)


def check_annotations(path: Path, images: Path) -> None:
    """Raises TaskError where the file is not COCO key-point JSON or names a picture that is not there."""
    try:
        content = json.loads(path.read_text())
        names = [image["file_name"] for image in content["images"]]
        count = len(content["categories"][0]["keypoints"])
        bad = next((a["id"] for a in content["annotations"] if len(a["keypoints"]) != 3 * count), None)
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise TaskError(f"{path} is not COCO key-point JSON ({type(error).__name__}: {error})") from error
    if bad is not None:
        raise TaskError(f"{path}: annotation {bad} does not have {count} key points of three numbers")
    if count != 17:
        raise TaskError(f"{path}: {count} key points; this task scores COCO's 17")
    missing = next((name for name in names if not common.inside(images, name, path).is_file()), None)
    if missing is not None:
        raise TaskError(f"{path} names {missing}, which is not in {images}; complete the data set")


@MODELS.register_module()
class LinearHeatmapHead(HeatmapHead):
    """mmpose's heat-map head with one linear layer from a token to the heat-map cells of its patch."""

    def __init__(self, in_channels: int, out_channels: int, upsample: int, **kwargs) -> None:
        super().__init__(in_channels, out_channels, deconv_out_channels=None, **kwargs)
        self.final_layer = PatchLinear(in_channels, out_channels, upsample)

    def init_weights(self) -> None:
        """Keep :class:`PatchLinear`'s own initialisation."""

    def forward(self, feats: tuple[Tensor, ...]) -> Tensor:
        """One map (B, D, h, w) -> heat maps (B, 17, upsample·h, upsample·w)."""
        return self.final_layer(feats[-1])


@DATASETS.register_module()
class CocoKeypoints(CocoDataset):
    """mmpose's COCO data set, ground-truth boxes of people with at least one labelled key point."""

    def load_data_list(self) -> list[dict]:
        rows = super().load_data_list()
        return [row for row in rows if row["keypoints_visible"].any()]


def recipe(job: Job, chosen: dict) -> engine.Recipe:
    """The model and data of the task in mmpose's terms."""
    widths = engine.channels(job, chosen)
    height, width = common.pair(chosen["input_size"])
    stride = engine.stride(job, chosen)
    linear = chosen["head"] == "linear"
    scale = chosen["upsample"] if linear else 2 ** len(chosen["deconv"])
    heatmap = (width // stride * scale, height // stride * scale)
    codec = {"type": "UDPHeatmap", "input_size": (width, height), "heatmap_size": heatmap, "sigma": chosen["sigma"]}
    root = Path(job.data["root"])
    read = [{"type": "mmengine.ReadPicture"}, {"type": "mmpose.GetBBoxCenterScale", "padding": 1.25}]
    augment = [{"type": "mmpose.RandomFlip", "direction": "horizontal"},
               {"type": "mmpose.RandomBBoxTransform", "rotate_factor": 40.0}]
    affine = [{"type": "mmpose.TopdownAffine", "input_size": (width, height), "use_udp": True}]
    target = [{"type": "mmpose.GenerateTarget", "encoder": codec}]
    pack = [{"type": "mmpose.PackPoseInputs"}]

    def data(part: str, pipeline: list[dict], test: bool = False) -> dict:
        return {
            "type": "mmpose.CocoKeypoints", "data_root": str(root), "data_mode": "topdown",
            "ann_file": job.data[f"{part}_annotations"], "data_prefix": {"img": job.data[f"{part}_images"]},
            "test_mode": test, "pipeline": pipeline,
        }

    return engine.Recipe(
        scope="mmpose",
        model={
            "type": "mmpose.TopdownPoseEstimator",
            "backbone": engine.backbone(job, chosen),
            "neck": {"type": "mmengine.FeatureNorm", "channels": widths},
            "head": {
                "in_channels": sum(widths), "out_channels": 17,
                **({"type": "mmpose.LinearHeatmapHead", "upsample": scale} if linear else
                   {"type": "mmpose.HeatmapHead", "deconv_out_channels": tuple(chosen["deconv"]),
                    "deconv_kernel_sizes": (4,) * len(chosen["deconv"])}),
                "loss": {"type": "KeypointMSELoss", "use_target_weight": True, "loss_weight": 100.0}, "decoder": codec,
            },
            "data_preprocessor": common.preprocessor("mmpose.PoseDataPreprocessor"),
            "test_cfg": {"flip_test": chosen["flip_test"], "flip_mode": "heatmap", "shift_heatmap": False},
        },
        train=data("train", read + affine + target + pack),
        train_augmented=data("train", read + augment + affine + target + pack),
        test=data("val", read + affine + pack, test=True),
        metric={"type": "mmpose.CocoMetric", "ann_file": str(root / job.data["val_annotations"])},
    )
