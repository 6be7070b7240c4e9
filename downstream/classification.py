"""Classification: mmpretrain's ImageClassifier, a linear layer on the mean of the tokens; top-1 and top-5 accuracy."""

from __future__ import annotations

from pathlib import Path

from downstream import common, engine
from downstream.task import Job, Outcome, TaskError


def evaluate(job: Job) -> Outcome:
    """Image folders ``{root}/{train,val}/<class>/*``; ``data`` has root, train, val."""
    chosen = engine.settings(job, input_size=64, epochs=30, batch_size=128, lr=[3e-3, 1.2e-2], label_smoothing=0.0)
    root = Path(job.data["root"])
    folders = {part: common.need(root / job.data[part], "classification") for part in ("train", "val")}
    classes = [path.name for path in sorted(folders["train"].iterdir()) if path.is_dir()]
    if len(classes) < 2:
        raise TaskError(f"classification: {folders['train']} must hold a folder for each of at least two classes")
    extra = {path.name for path in folders["val"].iterdir() if path.is_dir()} - set(classes)
    if extra:
        raise TaskError(f"classification: {folders['val']} holds classes that train lacks: {', '.join(sorted(extra))}")
    outcome, seen, _ = engine.run(job, recipe(job, chosen, classes), chosen)
    return Outcome({"top1": outcome["accuracy/top1"], "top5": outcome[f"accuracy/top{min(5, len(classes))}"]}, seen)


def recipe(job: Job, chosen: dict, classes: list[str]) -> engine.Recipe:
    """The model and data of the task in mmpretrain's terms."""
    widths = engine.channels(job, chosen)
    read = [{"type": "mmengine.ReadPicture"}, {"type": "mmengine.AreaResize", "size": chosen["input_size"]}]
    flip = [{"type": "mmpretrain.RandomFlip", "prob": 0.5, "direction": "horizontal"}]
    pack = [{"type": "mmpretrain.PackInputs"}]
    top5 = min(5, len(classes))

    def data(part: str, pipeline: list[dict]) -> dict:
        return {
            "type": "mmpretrain.CustomDataset", "data_root": str(Path(job.data["root"]) / job.data[part]),
            "metainfo": {"classes": classes}, "pipeline": pipeline,
        }

    return engine.Recipe(
        scope="mmpretrain",
        model={
            "type": "mmpretrain.ImageClassifier",
            "backbone": engine.backbone(job, chosen),
            "neck": {"type": "mmengine.FeatureNorm", "channels": widths, "pool": True},
            "head": {
                "type": "mmpretrain.LinearClsHead", "num_classes": len(classes), "in_channels": sum(widths),
                "loss": {"type": "LabelSmoothLoss", "label_smooth_val": chosen["label_smoothing"]}
                if chosen["label_smoothing"] else {"type": "CrossEntropyLoss"},
                "topk": (1, top5),
            },
            "data_preprocessor": common.preprocessor("mmpretrain.ClsDataPreprocessor"),
        },
        train=data("train", read + pack),
        train_augmented=data("train", read + flip + pack),
        test=data("val", read + pack),
        metric={"type": "mmpretrain.Accuracy", "topk": (1, top5)},
    )
