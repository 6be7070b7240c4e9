"""Classification: mmpretrain's ImageClassifier, a linear layer on the mean of the tokens; top-1 and top-5 accuracy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from mmpretrain.models.heads import ClsHead
from mmpretrain.registry import MODELS
from torch import Tensor

from downstream import attentive, common, engine, frozen, grid_classifier, neighbours
from downstream.task import Job, Outcome, TaskError

NECKS = ("batchnorm", "layernorm", "none")
POOLS = ("mean", "token")
DEFAULTS = {
    "input_size": 64, "epochs": 30, "batch_size": 128, "lr": [3e-3, 1.2e-2], "label_smoothing": 0.0,
    "neck": "batchnorm", "pool": "mean", "resize": None, "crop_scale": None, "rand_augment": False, "erase": 0.0,
    "mixup": 0.0, "cutmix": 0.0,
}


def settings_of(job: Job) -> dict[str, Any]:
    """The settings of :func:`evaluate` with their defaults.

    Raises:
        TaskError: one that the task does not know or take.
    """
    chosen = engine.settings(job, **DEFAULTS)
    engine.one_of(job, chosen, "neck", NECKS)
    engine.one_of(job, chosen, "pool", POOLS)
    if chosen["neck"] != "batchnorm" and engine.gridded(job, chosen):
        raise TaskError(f"classification: neck {chosen['neck']!r} does not go with layers; leave one of them out")
    return chosen


def evaluate(job: Job) -> Outcome:
    """Image folders ``{root}/{train,val}/<class>/*``; ``data`` has root, train, val.

    ``pool`` (frozen, fine-tuning): "mean" of the patch tokens, or "token", the class token of a backbone that has one.
    ``neck``, before the linear layer: "batchnorm" without affine (as in MAE's probe), "layernorm" in the place of the
    backbone's final norm (fine-tuning in MAE and BEiT: fc_norm), "none"; a grid of ``layers`` has the first.
    ``resize``: short side before the central crop at test time; None takes the whole picture. Augmentation of what is
    trained on pictures: ``crop_scale`` (area of the random crop), ``rand_augment``, ``erase`` (probability), and for
    ``finetune`` ``mixup`` and ``cutmix`` (alpha).
    """
    chosen = settings_of(job)
    classes = classes_of(job.data)
    found = engine.run(job, recipe(job, chosen, classes), chosen)
    top5 = found.numbers[f"accuracy/top{min(5, len(classes))}"]
    return Outcome({"top1": found.numbers["accuracy/top1"], "top5": top5}, found.seen, chosen=found.chosen)


def classes_of(section: dict[str, Any]) -> list[str]:
    """Names of the class folders, in order.

    Raises:
        MissingData: a part is not there.
        TaskError: less than two classes, or one that is only in ``val``.
    """
    root = Path(section["root"])
    folders = {part: common.need(root / section[part], "classification") for part in ("train", "val")}
    classes = [path.name for path in sorted(folders["train"].iterdir()) if path.is_dir()]
    if len(classes) < 2:
        raise TaskError(f"classification: {folders['train']} must hold a folder for each of at least two classes")
    extra = {path.name for path in folders["val"].iterdir() if path.is_dir()} - set(classes)
    if extra:
        raise TaskError(f"classification: {folders['val']} holds classes that train lacks: {', '.join(sorted(extra))}")
    return classes


def dataset_of(section: dict[str, Any], part: str, classes: list[str], pipeline: list[dict]) -> dict[str, Any]:
    """mmpretrain's data set of "train" or "val", with the ``classes`` of :func:`classes_of`."""
    return {
        "type": "mmpretrain.CustomDataset", "data_root": str(Path(section["root"]) / section[part]),
        "metainfo": {"classes": classes}, "pipeline": pipeline,
    }


@MODELS.register_module()
class NeighbourClsHead(ClsHead):
    """Classes by the nearest training pictures."""

    balanced = False  # judged by the share of hits

    def __init__(self, num_classes: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.memory = neighbours.Memory(num_classes)

    def rows(self, maps: tuple[Tensor, ...], samples: list) -> list[tuple[Tensor, Tensor]]:
        """Key and label of each picture: (1, D) and (1,)."""
        keys = self.keys(maps)
        return [(key[None], sample.gt_label) for key, sample in zip(keys, samples, strict=True)]

    def keys(self, maps: tuple[Tensor, ...]) -> Tensor:
        """The mean over each picture: (B, ΣD)."""
        return torch.cat([x.mean((2, 3)) for x in maps], 1)

    def forward(self, feats: tuple[Tensor, ...]) -> Tensor:
        """Maps -> scores (B, classes)."""
        return self.memory(self.keys(feats))


def parts(job: Job, chosen: dict[str, Any], classes: int) -> dict[str, Any]:
    """Backbone, neck and head of the protocol."""
    in_one_pass = engine.gridded(job, chosen)
    widths = engine.channels(job, chosen)
    common_head = {"num_classes": classes, "topk": (1, min(5, classes))}
    backbone = engine.backbone(job, chosen)
    if job.protocol in ("frozen", "finetune"):
        backbone |= {"token": chosen["pool"] == "token", "final_norm": chosen["neck"] != "layernorm"}
    if job.protocol == "knn":
        return {"backbone": backbone, "head": {"type": "mmpretrain.NeighbourClsHead", **common_head}}
    if chosen["label_smoothing"]:
        loss = {"type": "LabelSmoothLoss", "label_smooth_val": chosen["label_smoothing"]}
    else:  # mixed labels are soft ones
        mixed = job.protocol == "finetune" and (chosen["mixup"] or chosen["cutmix"])
        soft = {"use_soft": True} if mixed else {}
        loss = {"type": "CrossEntropyLoss", **soft}
    if in_one_pass:
        return {
            "backbone": backbone, "neck": {"type": "mmengine.EachNormed", "channels": widths, "pool": True},
            "head": {"type": grid_classifier.GridClsHead, "channels": widths, "layers": chosen["layers"],
                     "rates": frozen.rates_of(chosen), "loss": {"type": "CrossEntropyLoss"}, **common_head},
        }
    neck: dict[str, Any] = {"type": "mmengine.FeatureNorm", "channels": widths, "pool": True, "kind": chosen["neck"]}
    if job.protocol == "attentive":
        neck = attentive.pool(chosen, widths)
    return {
        "backbone": backbone, "neck": neck,
        "head": {"type": "mmpretrain.LinearClsHead", "in_channels": sum(widths), "loss": loss, **common_head},
    }


def recipe(job: Job, chosen: dict, classes: list[str]) -> engine.Recipe:
    """The model and data of the task in mmpretrain's terms."""
    size = common.pair(chosen["input_size"])
    read = [{"type": "mmengine.ReadPicture"}]
    whole = [{"type": "mmengine.AreaResize", "size": chosen["input_size"]}]
    if chosen["resize"] is not None:
        whole = [
            {"type": "mmpretrain.ResizeEdge", "scale": chosen["resize"], "edge": "short", "backend": "pillow",
             "interpolation": "bicubic"},
            {"type": "mmpretrain.CenterCrop", "crop_size": size},
        ]
    augment = whole
    if chosen["crop_scale"] is not None:
        augment = [{"type": "mmpretrain.RandomResizedCrop", "scale": size[::-1], "backend": "pillow",
                    "interpolation": "bicubic", "crop_ratio_range": tuple(chosen["crop_scale"])}]
    augment = [*augment, {"type": "mmpretrain.RandomFlip", "prob": 0.5, "direction": "horizontal"}]
    if chosen["rand_augment"]:  # as MAE, BEiT and SimMIM: timm's rand-m9-mstd0.5-inc1
        augment.append({
            "type": "mmpretrain.RandAugment", "policies": "timm_increasing", "num_policies": 2, "total_level": 10,
            "magnitude_level": 9, "magnitude_std": 0.5, "hparams": {"interpolation": "bicubic"},
        })
    if chosen["erase"]:
        augment.append({"type": "mmpretrain.RandomErasing", "erase_prob": chosen["erase"], "mode": "rand",
                        "max_area_ratio": 1 / 3})
    mixed = [{"type": name, "alpha": chosen[key]} for name, key in (("Mixup", "mixup"), ("CutMix", "cutmix"))
             if chosen[key] and job.protocol == "finetune"]
    pack = [{"type": "mmpretrain.PackInputs"}]

    more = {"num_classes": len(classes), "batch_augments": {"augments": mixed}} if mixed else {}
    return engine.Recipe(
        scope="mmpretrain",
        model={
            "type": "mmpretrain.ImageClassifier", **parts(job, chosen, len(classes)),
            "data_preprocessor": common.preprocessor("mmpretrain.ClsDataPreprocessor", **more),
        },
        train=dataset_of(job.data, "train", classes, read + whole + pack),
        train_augmented=dataset_of(job.data, "train", classes, read + augment + pack),
        test=dataset_of(job.data, "val", classes, read + whole + pack),
        metric={"type": "mmpretrain.Accuracy", "topk": (1, min(5, len(classes)))},
    )
