"""Pose: mmpose's TopdownPoseEstimator with a heat-map head on people's boxes; average precision under OKS, and the
percentage of correct key points (PCK) where the data set's field counts those.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.dataset import BaseDataset
from mmpose.datasets.datasets.body import CocoDataset, CrowdPoseDataset
from mmpose.evaluation import CocoMetric
from mmpose.evaluation.functional import keypoint_pck_accuracy
from mmpose.models.heads import HeatmapHead
from mmpose.registry import DATASETS, METRICS, MODELS
from torch import Tensor
from torch.nn.functional import interpolate

from downstream import attentive, common, engine, frozen, grid
from downstream.dense import PatchLinear
from downstream.task import Job, MissingData, Outcome, TaskError

HEADS = ("linear", "classic", "simple")
PADDING = 1.25  # of a person's box (mmpose)
# of a data set's meta information, what mmpose's transforms and models look for in a sample
SHARED = (
    "dataset_name", "upper_body_ids", "lower_body_ids", "flip_pairs", "dataset_keypoint_weights", "flip_indices",
    "skeleton_links",
)
DEFAULTS = {
    "input_size": 64, "epochs": 12, "batch_size": 32, "lr": [4e-3, 1.6e-2], "head": "linear", "upsample": 4,
    "sigma": 1.5, "flip_test": True, "deconv": (256, 256), "half_body": False, "loss_weight": 100.0, "patch_padding": 0,
    "neck": "batchnorm", "class_token": True,
}


@dataclass(frozen=True)
class Layout:
    """What differs between the data sets of people.

    Attributes:
        dataset: mmpose's class, whose meta information has the names, the flips and the sigmas of OKS.
        count: key points of a person.
        metric: the metric with its arguments: CrowdPose has its own matching and no areas.
        more: further numbers that the metric gives, by our names.
    """

    dataset: str
    count: int
    metric: dict[str, Any]
    more: dict[str, str] = field(default_factory=dict)


LAYOUTS = {
    "coco": Layout("CocoKeypoints", 17, {"type": "mmpose.CocoMetric"}),
    "crowdpose": Layout(
        "CrowdPoseKeypoints", 14,
        {"type": "mmpose.CocoMetric", "use_area": False, "iou_type": "keypoints_crowd"},
        {"AP_easy": "AP(E)", "AP_medium": "AP(M)", "AP_hard": "AP(H)"},
    ),
    "lsp": Layout("CocoKeypoints", 17, {"type": "mmpose.CocoWithPCK"}, {"PCK": "PCK"}),
}


def settings_of(job: Job) -> dict[str, Any]:
    """The settings of :func:`evaluate` with their defaults.

    Raises:
        TaskError: one that the task does not know or take.
    """
    chosen = engine.settings(job, **DEFAULTS)
    engine.one_of(job, chosen, "neck", ("batchnorm", "none"))
    engine.one_of(job, chosen, "head", HEADS)
    return chosen


def evaluate(job: Job) -> Outcome:
    """COCO key-point JSON. ``data``: root, {train,val}_images, {train,val}_annotations, relative to root.

    ``layout`` in ``data`` is "coco" (the default), "crowdpose" or "lsp" (Leeds Sports Pose as COCO JSON);
    ``val_boxes`` names a detector's result file, whose boxes are used at test time; None: the ground truth's.

    ``input_size`` is (height, width) of the crop, whose box is padded by :data:`PADDING`. ``head``: "linear" (the heat
    map is ``upsample`` times as fine as the tokens), "classic" (deconvolutions of ``deconv`` channels, ViTPose: two of
    256) or "simple" (ReLU, 4 times bilinear, one 3x3 convolution, ViTPose). ``patch_padding``: pixels of padding before
    the patches (ViTPose: 2). ``class_token`` False leaves out a plain ViT's (ViTPose). ``neck``, before the head:
    "batchnorm" without affine, or "none" (ViTPose).
    ``test_limit`` counts pictures, with all people in them.
    """
    chosen = settings_of(job)
    layout = layout_of(job.data)
    if job.data.get("val_boxes"):
        if "PCK" in layout.more:
            raise TaskError("pose: PCK compares a person with its own annotation; leave out val_boxes")
        common.need(Path(job.data["root"]) / job.data["val_boxes"], "pose")
    with tempfile.TemporaryDirectory(prefix=".limited-", dir=job.work_dir) as folder:
        if chosen["test_limit"] is not None:
            job = replace(job, data=limited(job.data, chosen["test_limit"], Path(folder)))
            chosen["test_limit"] = None
        found = engine.run(job, recipe(job, chosen), chosen)
    # pycocotools says -1 where a score is not defined: no detection at all
    names = {"AP": "AP", "AP50": "AP .5", "AR": "AR", **layout.more}
    metrics = {name: 100 * max(0.0, found.numbers[f"coco/{key}"]) for name, key in names.items()}
    return Outcome(metrics, found.seen, getattr(found.metric, "per_item", {}), found.chosen)


def layout_of(section: dict[str, Any]) -> Layout:
    """The layout of a data section whose pictures and annotations are all there and name one another.

    Raises:
        MissingData: a folder or a file of annotations is not there.
        TaskError: an unknown layout, or annotations that cannot be used.
    """
    name, root = section.get("layout", "coco"), Path(section["root"])
    if name not in LAYOUTS:
        raise TaskError(f"pose: layout {name!r} is not one of {', '.join(LAYOUTS)}")
    for part in ("train", "val"):
        images, annotations = (root / section[f"{part}_{kind}"] for kind in ("images", "annotations"))
        common.need(images, "pose")
        check_annotations(common.need(annotations, "pose"), images, LAYOUTS[name].count)
    return LAYOUTS[name]


def dataset_of(section: dict[str, Any], part: str, pipeline: list[dict], test: bool = False) -> dict[str, Any]:
    """mmpose's data set of the people of "train" or "val"; with ``test`` in a detector's boxes where it names some."""
    boxes = section.get("val_boxes") if test else None
    return {
        "type": f"mmpose.{LAYOUTS[section.get('layout', 'coco')].dataset}", "data_root": section["root"],
        "data_mode": "topdown", "ann_file": section[f"{part}_annotations"],
        "data_prefix": {"img": section[f"{part}_images"]}, "test_mode": test,
        "pipeline": [{"type": "mmengine.ReadPicture"}, *pipeline],
        **({"bbox_file": str(Path(section["root"]) / boxes)} if boxes else {}),
    }


def limited(section: dict[str, Any], count: int, folder: Path) -> dict[str, Any]:
    """The data section with at most ``count`` test pictures, always the same ones, in annotation files of ``folder``.

    Scores count every person of the annotations, so that those of other pictures must not stand there.
    """
    root = Path(section["root"])
    content = json.loads((root / section["val_annotations"]).read_text())
    order = torch.randperm(len(content["images"]), generator=torch.Generator().manual_seed(0))[:count].sort().values
    content["images"] = [content["images"][i] for i in order.tolist()]
    kept = {image["id"] for image in content["images"]}
    content["annotations"] = [one for one in content["annotations"] if one["image_id"] in kept]
    (folder / "annotations.json").write_text(json.dumps(content))
    section = {**section, "val_annotations": str((folder / "annotations.json").resolve())}
    if section.get("val_boxes"):
        boxes = [box for box in json.loads((root / section["val_boxes"]).read_text()) if box["image_id"] in kept]
        (folder / "boxes.json").write_text(json.dumps(boxes))
        section["val_boxes"] = str((folder / "boxes.json").resolve())
    return section


def check_annotations(path: Path, images: Path, count: int) -> None:
    """Whether the file is COCO key-point JSON of ``count`` points and its pictures are there.

    Raises:
        TaskError: it is not.
        MissingData: a picture is not there.
    """
    try:
        content = json.loads(path.read_text())
        names = [image["file_name"] for image in content["images"]]
        found = len(content["categories"][0]["keypoints"])
        bad = next((a["id"] for a in content["annotations"] if len(a["keypoints"]) != 3 * found), None)
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise TaskError(f"{path} is not COCO key-point JSON ({type(error).__name__}: {error})") from error
    if bad is not None:
        raise TaskError(f"{path}: annotation {bad} does not have {found} key points of three numbers")
    if found != count:
        raise TaskError(f"{path}: {found} key points where the layout has {count}; check the suite's layout")
    missing = next((name for name in names if not common.inside(images, name, path).is_file()), None)
    if missing is not None:
        raise MissingData(f"{path} names {missing}, which is not in {images}; complete the data set")


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


@MODELS.register_module()
class SimpleHeatmapHead(HeatmapHead):
    """ViTPose's simple decoder: ReLU, four times the size by bilinear interpolation, one 3x3 convolution."""

    def __init__(self, in_channels: int, out_channels: int, **kwargs) -> None:
        super().__init__(
            in_channels, out_channels, deconv_out_channels=None, final_layer={"kernel_size": 3, "padding": 1}, **kwargs
        )

    def forward(self, feats: tuple[Tensor, ...]) -> Tensor:
        """One map (B, D, h, w) -> heat maps (B, points, 4h, 4w)."""
        return super().forward((interpolate(feats[-1].relu(), scale_factor=4, mode="bilinear"),))


class _Labelled:
    """Only people with at least one labelled key point; of a detector's boxes (which have no labels) all.

    Without their outlines, which no pose needs and mmengine would copy, number by number, with every sample.
    """

    def load_data_list(self) -> list[dict]:
        rows = super().load_data_list()
        for row in rows:
            (row.get("raw_ann_info") or {}).pop("segmentation", None)
        return [row for row in rows if row["keypoints_visible"].any()]

    def get_data_info(self, idx: int) -> dict:
        """mmpose's, with the names and pairs of key points that all people share, which it copies for each of them."""
        shared = {name: self._metainfo[name] for name in SHARED}
        return {**BaseDataset.get_data_info(self, idx), **shared}


@DATASETS.register_module()
class CocoKeypoints(_Labelled, CocoDataset):
    """mmpose's COCO data set."""


@DATASETS.register_module()
class CrowdPoseKeypoints(_Labelled, CrowdPoseDataset):
    """mmpose's CrowdPose data set."""


@METRICS.register_module()
class CocoWithPCK(CocoMetric):
    """mmpose's COCO scores, and the share of key points nearer than ``share`` of the torso to where they are.

    The torso reaches from the left shoulder to the right hip; .2 of it, boxes given, as Leeds Sports Pose is scored
    (Chen & Yuille, NIPS 2014, 1407.3399; Wei et al., CVPR 2016, 1602.00134), but over the 12 joints that COCO knows:
    neck and top of the head are left out. People without a torso (an end not labelled) are not counted.
    """

    TORSO = (5, 12)  # left shoulder and right hip among COCO's 17

    def __init__(self, share: float = 0.2, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.share = share
        self.per_item: dict[str, list[float]] = {}  # PCK of each person (%), from the process that computes the metrics

    def compute_metrics(self, results: list) -> dict[str, float]:
        people = {person["id"]: np.array(person["keypoints"], float).reshape(-1, 3)
                  for person in self.coco.loadAnns([predicted["id"] for predicted, _ in results])}
        truth = np.stack([people[predicted["id"]] for predicted, _ in results])  # (N, K, 3): x, y, labelled
        places = np.concatenate([predicted["keypoints"] for predicted, _ in results])
        one, other = (truth[:, end, :2] for end in self.TORSO)
        torso = np.linalg.norm(one - other, axis=-1)[:, None].repeat(2, axis=1)
        whole = (truth[:, self.TORSO, 2] > 0).all(-1) & (torso[:, 0] > 0)
        if not whole.any():
            raise TaskError("pose: nobody in the test set has a labelled torso; PCK is measured by it")

        def pck(chosen: np.ndarray) -> float:
            part = places[chosen], truth[chosen, :, :2], truth[chosen, :, 2] > 0, self.share, torso[chosen]
            return float(keypoint_pck_accuracy(*part)[1])

        self.per_item = {"PCK": [100 * pck(np.array([person])) for person in np.flatnonzero(whole)]}
        return {**super().compute_metrics(results), "PCK": pck(whole)}


def parts(job: Job, chosen: dict[str, Any], codec: dict[str, Any], points: int, scale: int) -> dict[str, Any]:
    """Backbone, neck and head of the protocol; ``scale``: cells of the heat map along a token."""
    in_one_pass = engine.gridded(job, chosen)
    if in_one_pass and len(chosen["layers"]) > 1 and engine.hierarchical(job, chosen):
        raise TaskError("pose: stages have maps of several sizes, a heat map has one; name one of them in layers")
    widths, backbone = engine.channels(job, chosen), engine.backbone(job, chosen)
    if chosen["patch_padding"]:
        backbone["patch_padding"] = chosen["patch_padding"]
    if not chosen["class_token"]:
        backbone["class_token"] = False
    neck, width = {"type": "mmengine.FeatureNorm", "channels": widths, "kind": chosen["neck"]}, sum(widths)
    if job.protocol == "attentive":
        neck, width = attentive.blocks(chosen, widths)
    kinds: dict[str, dict[str, Any]] = {
        "linear": {"type": "mmpose.LinearHeatmapHead", "upsample": scale},
        "classic": {"type": "mmpose.HeatmapHead", "deconv_out_channels": tuple(chosen["deconv"]),
                    "deconv_kernel_sizes": (4,) * len(chosen["deconv"])},
        "simple": {"type": "mmpose.SimpleHeatmapHead"},
    }
    loss = {"type": "KeypointMSELoss", "use_target_weight": True, "loss_weight": chosen["loss_weight"]}
    head = {"in_channels": width, "out_channels": points, **kinds[chosen["head"]], "loss": loss, "decoder": codec}
    if in_one_pass:
        neck, head = grid.of_heads(head, widths, chosen["layers"], frozen.rates_of(chosen))
    return {"backbone": backbone, "neck": neck, "head": head}


def recipe(job: Job, chosen: dict) -> engine.Recipe:
    """The model and data of the task in mmpose's terms."""
    layout = LAYOUTS[job.data.get("layout", "coco")]
    height, width = common.pair(chosen["input_size"])
    engine.gridded(job, chosen)
    stride = engine.stride(job, chosen)
    scale = {"linear": chosen["upsample"], "classic": 2 ** len(chosen["deconv"]), "simple": 4}[chosen["head"]]
    heatmap = (width // stride * scale, height // stride * scale)
    codec = {"type": "UDPHeatmap", "input_size": (width, height), "heatmap_size": heatmap, "sigma": chosen["sigma"]}
    root = Path(job.data["root"])
    box = [{"type": "mmpose.GetBBoxCenterScale", "padding": PADDING}]
    augment = [{"type": "mmpose.RandomFlip", "direction": "horizontal"},
               *([{"type": "mmpose.RandomHalfBody"}] if chosen["half_body"] else []),
               {"type": "mmpose.RandomBBoxTransform", "rotate_factor": 40.0}]
    affine = [{"type": "mmpose.TopdownAffine", "input_size": (width, height), "use_udp": True}]
    target = [{"type": "mmpose.GenerateTarget", "encoder": codec}]
    pack = [{"type": "mmpose.PackPoseInputs"}]

    return engine.Recipe(
        scope="mmpose",
        model={
            "type": "mmpose.TopdownPoseEstimator", **parts(job, chosen, codec, layout.count, scale),
            "data_preprocessor": common.preprocessor("mmpose.PoseDataPreprocessor"),
            "train_cfg": {"compute_acc": False},  # of every step's key points, on the processor
            "test_cfg": {"flip_test": chosen["flip_test"], "flip_mode": "heatmap", "shift_heatmap": False},
        },
        train=dataset_of(job.data, "train", box + affine + target + pack),
        train_augmented=dataset_of(job.data, "train", box + augment + affine + target + pack),
        test=dataset_of(job.data, "val", box + affine + pack, test=True),
        metric={"ann_file": str(root / job.data["val_annotations"]), "prefix": "coco", **layout.metric},
    )
