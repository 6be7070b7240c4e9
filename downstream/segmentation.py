"""Segmentation: mmseg's EncoderDecoder, linear or UPerHead; mIoU over the whole set; ADE20K's and CamVid's layouts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmseg.datasets import BaseSegDataset
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.models.utils import resize
from mmseg.registry import DATASETS, MODELS, TRANSFORMS
from torch import Tensor, nn

from downstream import attentive, common, engine, frozen, grid, neighbours
from downstream.dense import LinearDenseMixin
from downstream.task import Job, Outcome, TaskError

IGNORE = 255


HEADS = ("linear", "uper")
DEFAULTS = {
    "input_size": 64, "epochs": 6, "batch_size": 32, "lr": [4e-3, 1.6e-2], "upsample": 4, "head": "linear",
    "channels": 768, "auxiliary": 256, "scale": None, "photometric": False, "slide_stride": None,
    "k": (10, 30), "temperature": (0.02, 0.07), "memory": 40_960,  # k 30 and .02 of 2306.01667; it keeps 10 million
}


def settings_of(job: Job) -> dict[str, Any]:
    """The settings of :func:`evaluate` with their defaults.

    Raises:
        TaskError: one that the task does not know or take.
    """
    chosen = engine.settings(job, **DEFAULTS)
    engine.one_of(job, chosen, "head", HEADS)
    if (chosen["scale"] is None) != (chosen["slide_stride"] is None):
        raise TaskError("segmentation: scale and slide_stride belong together; give both or neither")
    return chosen


def evaluate(job: Job) -> Outcome:
    """``data``: root, train, val, and ``layout``, "ade" (:class:`AdeLayout`, the default) or "camvid".

    ``head``: "linear", or "uper" (UPerHead of ``channels`` and an auxiliary FCN head of ``auxiliary`` channels on the
    four maps of ``out_indices``, for a ViT behind mmseg's Feature2Pyramid; "pyramid": see :func:`pyramid`). ``scale``
    (long and short side, pixels): pictures keep their ratio; training takes crops of ``input_size`` from pictures
    scaled by .5 to 2, the test slides a window of ``input_size`` by ``slide_stride``. None: whole pictures at
    ``input_size``.
    """
    chosen = settings_of(job)
    found = engine.run(job, recipe(job, chosen, classes_of(job.data)), chosen)
    numbers = {name: float(found.numbers[name]) for name in ("mIoU", "aAcc", "mAcc")}
    return Outcome(numbers, found.seen, chosen=found.chosen)


def read_classes(root: Path) -> list[str]:
    """Class names from ``objectInfo.txt`` (ADE20K's: ``objectInfo150.txt``): last column, first line left out.

    Raises:
        TaskError: no such table, or an empty one.
    """
    tables = sorted(root.glob("objectInfo*.txt"))
    if not tables:
        raise TaskError(f"segmentation: no objectInfo.txt in {root}; it lists the classes, one a line")
    lines = [line.split("\t") for line in common.read_text(tables[0]).splitlines()[1:] if line.strip()]
    if not lines:
        raise TaskError(f"segmentation: {tables[0]} lists no class")
    return [columns[-1].strip() for columns in lines]


class PairedLayout(BaseSegDataset):
    """Pictures and label maps in two folders; a picture without its annotation is an error at once."""

    void = 0  # the label that is ignored
    first = 1  # the label of the first class

    def load_data_list(self) -> list[dict]:
        """As mmseg's, but a picture without its annotation is an error here, not in the middle of a run."""
        rows = super().load_data_list()
        for row in rows:
            if not Path(row["seg_map_path"]).is_file():
                raise TaskError(f"{row['seg_map_path']} is missing for {row['img_path']}; complete the data set")
        return rows


@DATASETS.register_module()
class AdeLayout(PairedLayout):
    """ADE20K: ``images/<part>/*.jpg``, ``annotations/<part>/*.png`` (0 = ignored), classes in ``objectInfo*.txt``."""

    def __init__(self, **kwargs) -> None:
        super().__init__(img_suffix=".jpg", seg_map_suffix=".png", reduce_zero_label=True, **kwargs)

    @staticmethod
    def folders(part: str) -> tuple[str, str]:
        """Folders of the pictures and of the label maps."""
        return f"images/{part}", f"annotations/{part}"


@DATASETS.register_module()
class CamVidLayout(PairedLayout):
    """CamVid in the SegNet split: ``<part>/*.png``, ``<part>annot/*.png`` with classes 0 … 10, 11 = ignored."""

    void, first = 11, 0

    def __init__(self, **kwargs) -> None:
        super().__init__(img_suffix=".png", seg_map_suffix=".png", reduce_zero_label=False, **kwargs)

    @staticmethod
    def folders(part: str) -> tuple[str, str]:
        """Folders of the pictures and of the label maps."""
        return part, f"{part}annot"


LAYOUTS: dict[str, type[AdeLayout | CamVidLayout]] = {"ade": AdeLayout, "camvid": CamVidLayout}
CAMVID = ("sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian", "bicyclist")


def classes_of(section: dict[str, Any]) -> list[str]:
    """Names of the classes of a data section whose folders are all there.

    Raises:
        MissingData: a folder is not there.
        TaskError: an unknown layout, or no table of classes.
    """
    root, layout = Path(section["root"]), section.get("layout", "ade")
    if layout not in LAYOUTS:
        raise TaskError(f"segmentation: layout {layout!r} is not one of {', '.join(LAYOUTS)}")
    for part in ("train", "val"):
        for folder in LAYOUTS[layout].folders(section[part]):
            common.need(root / folder, "segmentation")
    return read_classes(root) if layout == "ade" else list(CAMVID)


def dataset_of(section: dict[str, Any], part: str, classes: list[str], pipeline: list[dict]) -> dict[str, Any]:
    """mmseg's data set of "train" or "val", with the ``classes`` of :func:`classes_of`.

    ``pipeline`` follows after picture and labels have been read.
    """
    layout = section.get("layout", "ade")
    pictures, labels = LAYOUTS[layout].folders(section[part])
    read = [{"type": "mmengine.ReadPicture"},
            {"type": "mmseg.ReadLabels", "num_classes": len(classes), "layout": layout}]
    return {
        "type": f"mmseg.{LAYOUTS[layout].__name__}", "data_root": section["root"], "metainfo": {"classes": classes},
        "data_prefix": {"img_path": pictures, "seg_map_path": labels}, "pipeline": read + pipeline,
        "test_mode": part == "val",
    }


@TRANSFORMS.register_module()
class ReadLabels:
    """``seg_map_path`` -> ``gt_seg_map`` (H, W): classes from 0, the layout's void label becomes 255 (ignored).

    Raises:
        TaskError: a damaged file, or a label beyond the classes.
    """

    def __init__(self, num_classes: int, layout: str = "ade") -> None:
        self.num_classes, self.layout = num_classes, LAYOUTS[layout]

    def __call__(self, results: dict) -> dict:
        labels = common.read_picture(results["seg_map_path"], "labels")
        if labels.ndim != 2 or labels.shape != tuple(results["ori_shape"]):
            raise TaskError(f"{results['seg_map_path']} has shape {labels.shape}, its picture {results['ori_shape']}")
        void, first = self.layout.void, self.layout.first
        if labels.max() > max(void, self.num_classes - 1 + first):
            source = "objectInfo" if self.layout is AdeLayout else self.layout.__name__
            raise TaskError(
                f"{results['seg_map_path']} holds label {labels.max()}, but {source} lists {self.num_classes} classes"
            )
        results["gt_seg_map"] = np.where(labels == void, IGNORE, labels - first).astype(np.uint8)
        results.setdefault("seg_fields", []).append("gt_seg_map")
        return results


@MODELS.register_module()
class LinearSegHead(LinearDenseMixin, BaseDecodeHead):
    """From a token's features to ``upsample²`` sub-patches' logits by one linear layer, then bilinear to the labels."""

    def loss_by_feat(self, seg_logits: Tensor, batch_data_samples: list) -> dict[str, Tensor]:
        """mmseg's, without the accuracy of each training batch, which sorts all pixels' classes and nobody reads."""
        labels = self._stack_batch_gt(batch_data_samples)
        logits = resize(seg_logits, size=labels.shape[2:], mode="bilinear", align_corners=self.align_corners)
        loss = self.loss_decode(logits, labels.squeeze(1), ignore_index=self.ignore_index)
        return {self.loss_decode.loss_name: loss}


@MODELS.register_module()
class NeighbourSegHead(BaseDecodeHead):
    """Shares of the classes in each patch by the nearest training patches."""

    balanced = True  # judged by the mean over the classes, as mIoU does

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.conv_seg = nn.Identity()
        self.memory = neighbours.Memory(self.num_classes)

    def init_weights(self) -> None:
        """There is nothing to train."""

    def rows(self, maps: tuple[Tensor, ...], samples: list) -> list[tuple[Tensor, Tensor]]:
        """Keys (T, D) of each picture's labelled patches and the shares of the classes in them (T, C)."""
        keys, size = self.keys(maps), maps[0].shape[2:]
        rows = []
        for key, sample in zip(keys.flatten(2).transpose(1, 2), samples, strict=True):
            labels = sample.gt_sem_seg.data[0]
            shares = neighbours.patch_shares(labels, (size[0], size[1]), self.num_classes, self.ignore_index)
            known = shares.sum(1) > 0
            rows.append((key[known], shares[known]))
        return rows

    def keys(self, maps: tuple[Tensor, ...]) -> Tensor:
        """The maps as one (B, ΣD, H, W)."""
        size = maps[0].shape[2:]
        maps = tuple(x if x.shape[2:] == size else nn.functional.interpolate(x, size) for x in maps)
        return torch.cat(maps, 1)

    def forward(self, inputs: tuple[Tensor, ...]) -> Tensor:
        """Maps -> shares of the classes (B, C, H, W)."""
        keys = self.keys(inputs)
        votes = self.memory(keys.permute(0, 2, 3, 1).flatten(0, 2))
        return votes.view(len(keys), *keys.shape[2:], -1).permute(0, 3, 1, 2)


def pyramid(layers: int) -> tuple[int, ...]:
    """The blocks after a third, half, two thirds and all of a ViT's ``layers``; of four stages all.

    3, 5, 7, 11 of ViT-B and 7, 11, 15, 23 of ViT-L (microsoft/unilm: beit, beit2; MAE in mmsegmentation for B).
    """
    return tuple(round(layers * share) - 1 for share in (1 / 3, 1 / 2, 2 / 3, 1)) if layers > 4 else tuple(
        range(layers))


def parts(job: Job, chosen: dict[str, Any], classes: int) -> dict[str, Any]:
    """Backbone, neck and heads of the protocol."""
    if chosen["out_indices"] == "pyramid":
        chosen["out_indices"] = pyramid(engine.layer_count(job))
    in_one_pass = engine.gridded(job, chosen)
    uper = chosen["head"] == "uper" and job.protocol != "knn"
    if uper and in_one_pass:
        raise TaskError("segmentation: a grid of layers needs head linear; set layers=None")
    if uper and len(set(chosen["out_indices"])) != 4:
        raise TaskError(f"segmentation: head uper needs four different out_indices, not {chosen['out_indices']}")
    widths, backbone = engine.channels(job, chosen), engine.backbone(job, chosen)
    loss = {"type": "CrossEntropyLoss", "avg_non_ignore": True}
    shared = {"num_classes": classes, "loss_decode": loss, "align_corners": False}
    if job.protocol == "knn":
        return {"backbone": backbone, "decode_head": {
            "type": "NeighbourSegHead", "in_channels": sum(widths), "channels": sum(widths), **shared}}
    if uper:
        backbone["final_norm"] = False  # UPerHead reads a ViT's maps as they are (mmseg's MAE and BEiT)
        norm = {"type": "BN", "requires_grad": True}
        flat = len(set(widths)) == 1  # a ViT: all maps at one resolution
        neck = {"type": "mmseg.Feature2Pyramid", "embed_dim": widths[0], "norm_cfg": norm}
        return {
            "backbone": backbone, **({"neck": neck} if flat else {}),
            "decode_head": {
                "type": "UPerHead", "in_channels": list(widths), "in_index": [0, 1, 2, 3], "pool_scales": (1, 2, 3, 6),
                "channels": chosen["channels"], "dropout_ratio": 0.1, "norm_cfg": norm, **shared,
            },
            "auxiliary_head": {
                "type": "FCNHead", "in_channels": widths[2], "in_index": 2, "channels": chosen["auxiliary"],
                "num_convs": 1, "concat_input": False, "dropout_ratio": 0.1, "norm_cfg": norm,
                **shared, "loss_decode": {**loss, "loss_weight": 0.4},
            },
        }
    neck, width = {"type": "mmengine.FeatureNorm", "channels": widths}, sum(widths)
    if job.protocol == "attentive":
        neck, width = attentive.blocks(chosen, widths)
    head = {
        "type": "LinearSegHead", "in_channels": width, "channels": width, "in_index": 0,
        "upsample": chosen["upsample"], "dropout_ratio": 0.0, **shared,
    }
    if in_one_pass:
        neck, head = grid.of_heads(head, widths, chosen["layers"], frozen.rates_of(chosen))
    return {"backbone": backbone, "neck": neck, "decode_head": head}


def recipe(job: Job, chosen: dict, classes: list[str]) -> engine.Recipe:
    """The model and data of the task in mmseg's terms."""
    size = common.pair(chosen["input_size"])
    fit = [{"type": "mmengine.AreaResize", "size": size}]
    label = [{"type": "mmengine.NearestAnnotation", "key": "gt_seg_map", "size": size}]
    flip = [{"type": "mmengine.FlipDense", "key": "gt_seg_map"}]
    pack = [{"type": "mmseg.PackSegInputs"}]
    train, augment, test = fit + label, fit + label + flip, fit
    test_cfg: dict[str, Any] = {"mode": "whole"}
    if chosen["scale"] is not None:
        scale = tuple(chosen["scale"])
        augment = [
            {"type": "RandomResize", "scale": scale, "ratio_range": (0.5, 2.0), "keep_ratio": True,
             "resize_type": "mmseg.Resize"},
            {"type": "mmseg.RandomCrop", "crop_size": size, "cat_max_ratio": 0.75}, *flip,
        ]
        test = [{"type": "mmengine.ResizePicture", "scale": scale}]
        stride = common.pair(chosen["slide_stride"])
        test_cfg = {"mode": "slide", "crop_size": size, "stride": stride}
    if chosen["photometric"]:
        augment = [*augment, {"type": "mmseg.PhotoMetricDistortion"}]

    return engine.Recipe(
        scope="mmseg",
        model={
            "type": "mmseg.EncoderDecoder", **parts(job, chosen, len(classes)),
            "data_preprocessor": common.preprocessor(
                "mmseg.SegDataPreProcessor", size=size, seg_pad_val=IGNORE,
                # a picture more than four times as wide as high is lower than the window: filled up, cut off again
                **({"test_cfg": {"size": size}} if chosen["scale"] is not None else {}),
            ),
            "test_cfg": test_cfg,
        },
        train=dataset_of(job.data, "train", classes, train + pack),
        train_augmented=dataset_of(job.data, "train", classes, augment + pack),
        test=dataset_of(job.data, "val", classes, test + pack),
        metric={"type": "mmseg.IoUMetric", "iou_metrics": ["mIoU"], "ignore_index": IGNORE},
    )
