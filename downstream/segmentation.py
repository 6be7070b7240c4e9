"""Segmentation: mmseg's EncoderDecoder, a linear layer from a token to its patch's pixels; mIoU over the whole set."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from mmseg.datasets import BaseSegDataset
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.registry import DATASETS, MODELS, TRANSFORMS

from downstream import common, engine
from downstream.dense import LinearDenseMixin
from downstream.task import Job, Outcome, TaskError

IGNORE = 255


def evaluate(job: Job) -> Outcome:
    """ADE20K layout: ``images/<part>/*.jpg``, ``annotations/<part>/*.png`` (0 = ignored), ``objectInfo*.txt``."""
    chosen = engine.settings(job, input_size=64, epochs=6, batch_size=32, lr=[4e-3, 1.6e-2], upsample=4)
    root = Path(job.data["root"])
    for part in ("train", "val"):
        for folder in ("images", "annotations"):
            common.need(root / folder / job.data[part], "segmentation")
    outcome, seen, _ = engine.run(job, recipe(job, chosen, read_classes(root)), chosen)
    return Outcome({name: float(outcome[name]) for name in ("mIoU", "aAcc", "mAcc")}, seen)


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


@DATASETS.register_module()
class AdeLayout(BaseSegDataset):
    """Pictures and label maps in ADE20K's layout, any number of classes, label 0 ignored."""

    def __init__(self, **kwargs) -> None:
        super().__init__(img_suffix=".jpg", seg_map_suffix=".png", reduce_zero_label=True, **kwargs)

    def load_data_list(self) -> list[dict]:
        """As mmseg's, but a picture without its annotation is an error here, not in the middle of a run."""
        rows = super().load_data_list()
        for row in rows:
            if not Path(row["seg_map_path"]).is_file():
                raise TaskError(f"{row['seg_map_path']} is missing for {row['img_path']}; complete the data set")
        return rows


@TRANSFORMS.register_module()
class ReadLabels:
    """``seg_map_path`` -> ``gt_seg_map`` (H, W): labels shifted by one, 0 becomes 255 (ignored).

    Raises:
        TaskError: a damaged file, or a label beyond the classes.
    """

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes

    def __call__(self, results: dict) -> dict:
        labels = common.read_picture(results["seg_map_path"], "labels")
        if labels.ndim != 2 or labels.shape != tuple(results["ori_shape"]):
            raise TaskError(f"{results['seg_map_path']} has shape {labels.shape}, its picture {results['ori_shape']}")
        if labels.max() > self.num_classes:
            raise TaskError(
                f"{results['seg_map_path']} holds label {labels.max()}, but objectInfo lists {self.num_classes} classes"
            )
        results["gt_seg_map"] = np.where(labels == 0, IGNORE, labels - 1).astype(np.uint8)
        results.setdefault("seg_fields", []).append("gt_seg_map")
        return results


@MODELS.register_module()
class LinearSegHead(LinearDenseMixin, BaseDecodeHead):
    """From a token's features to ``upsample²`` sub-patches' logits by one linear layer, then bilinear to the labels."""


def recipe(job: Job, chosen: dict, classes: list[str]) -> engine.Recipe:
    """The model and data of the task in mmseg's terms."""
    widths = engine.channels(job, chosen)
    size = common.pair(chosen["input_size"])
    read = [{"type": "mmengine.ReadPicture"}, {"type": "mmseg.ReadLabels", "num_classes": len(classes)}]
    shrink = [{"type": "mmengine.AreaResize", "size": size}]
    label = [{"type": "mmengine.NearestAnnotation", "key": "gt_seg_map", "size": size}]
    flip = [{"type": "mmengine.FlipDense", "key": "gt_seg_map"}]
    pack = [{"type": "mmseg.PackSegInputs"}]

    def data(part: str, pipeline: list[dict]) -> dict:
        return {
            "type": "mmseg.AdeLayout", "data_root": job.data["root"], "metainfo": {"classes": classes},
            "data_prefix": {"img_path": f"images/{job.data[part]}", "seg_map_path": f"annotations/{job.data[part]}"},
            "pipeline": pipeline, "test_mode": part == "val",
        }

    return engine.Recipe(
        scope="mmseg",
        model={
            "type": "mmseg.EncoderDecoder",
            "backbone": engine.backbone(job, chosen),
            "neck": {"type": "mmengine.FeatureNorm", "channels": widths},
            "decode_head": {
                "type": "LinearSegHead", "in_channels": sum(widths), "channels": sum(widths), "in_index": 0,
                "num_classes": len(classes), "upsample": chosen["upsample"], "dropout_ratio": 0.0,
                "loss_decode": {"type": "CrossEntropyLoss", "avg_non_ignore": True}, "align_corners": False,
            },
            "data_preprocessor": common.preprocessor("mmseg.SegDataPreProcessor", size=size, seg_pad_val=IGNORE),
            "test_cfg": {"mode": "whole"},
        },
        train=data("train", read + shrink + label + pack),
        train_augmented=data("train", read + shrink + label + flip + pack),
        test=data("val", read + shrink + pack),
        metric={"type": "mmseg.IoUMetric", "iou_metrics": ["mIoU"], "ignore_index": IGNORE},
    )
