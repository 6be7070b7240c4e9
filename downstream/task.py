"""What a downstream task is, seen from outside: its names, its metrics, one call that scores a backbone.

Light on purpose (no torch): the command line lists tasks from here in milliseconds. The code of a task lives in the
module that its entry names and is imported by :func:`evaluate`.
"""

from __future__ import annotations

import importlib
import io
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any

Progress = Callable[[str, int, int], None]
"""Called as ``progress(stage, done, total)``, for example ``("train", 40, 200)``."""


class TaskError(RuntimeError):
    """A task cannot be scored as asked; the message is one line that names the thing and the mend."""


class MissingData(TaskError):
    """A data set (or a part of it) is not there; its cells are skipped with this reason, not failed."""


@dataclass(frozen=True)
class Metric:
    """One number a task reports.

    ``low`` and ``high`` bound possible values: a record outside them is shown as invalid, never ranked.
    """

    name: str
    higher_is_better: bool
    unit: str
    low: float
    high: float


@dataclass(frozen=True)
class TaskInfo:
    """An entry of the task registry. The first metric is the one that ranks."""

    name: str
    summary: str
    version: int  # raised when the number a backbone gets changes; rows of different versions are never ranked together
    metrics: tuple[Metric, ...]
    protocols: tuple[str, ...]
    module: str  # has ``evaluate(job: Job) -> Outcome`` and ``settings_of(job: Job)``
    data_parallel: bool = True  # several processes can fine-tune it together


@dataclass(frozen=True)
class Job:
    """One cell to compute: this backbone, on this task, under this protocol."""

    backbone: Path  # folder with backbone.safetensors and backbone.json
    task: str
    protocol: str  # one of the task's: frozen | finetune | knn | attentive
    data: dict[str, Any]  # the suite's data section of the task; paths absolute
    settings: dict[str, Any]  # the suite's settings of the task and protocol: input_size, epochs, batch_size, lr, …
    seed: int
    device: str
    work_dir: Path  # exists; logs and temporary files go here
    progress: Progress = field(default=lambda stage, done, total: None)
    maps: Any = None  # downstream.layers.LayerMaps: the backbone's maps, shared with the jobs of its other layers


@dataclass(frozen=True)
class Outcome:
    """What a task found: ``metrics`` by name (all of ``TaskInfo.metrics``), and per-item scores where they exist."""

    metrics: dict[str, float]
    train_images: int  # images the head (or the whole model) saw in training, repetitions counted
    items: dict[str, list[float]] = field(default_factory=dict)  # metric name -> one score per test item, in order
    chosen: dict[str, Any] = field(default_factory=dict)  # what a part cut from the training data chose: lr, k, …
    # metric name -> what scores so on the same test items without having learned anything
    baselines: dict[str, dict[str, float]] = field(default_factory=dict)


FROZEN_FINETUNE = ("frozen", "finetune")
# A tracker's frozen head is attention over the tokens of both crops already: it has no `attentive` besides.
DENSE = ("frozen", "attentive", "finetune")
EVERY = ("frozen", "knn", "attentive", "finetune")

TASKS: dict[str, TaskInfo] = {
    task.name: task
    for task in (
        TaskInfo(
            "classification", "top-1 accuracy of a linear probe or a fine-tuned network (mmpretrain)", 2,
            (Metric("top1", True, "%", 0, 100), Metric("top5", True, "%", 0, 100)),
            EVERY, "downstream.classification",
        ),
        TaskInfo(
            "segmentation", "mean intersection over union of semantic classes (mmseg)", 2,
            (Metric("mIoU", True, "%", 0, 100), Metric("aAcc", True, "%", 0, 100), Metric("mAcc", True, "%", 0, 100)),
            EVERY, "downstream.segmentation",
        ),
        TaskInfo(
            "pose", "average precision of key points under OKS (mmpose)", 2,
            (Metric("AP", True, "%", 0, 100), Metric("AP50", True, "%", 0, 100), Metric("AR", True, "%", 0, 100)),
            DENSE, "downstream.pose",
        ),
        TaskInfo(
            "depth", "metric depth from one picture (mmseg)", 2,
            (
                Metric("rmse", False, "m", 0, 1e3), Metric("d1", True, "%", 0, 100), Metric("d2", True, "%", 0, 100),
                Metric("d3", True, "%", 0, 100), Metric("abs_rel", False, "", 0, 1e3),
                Metric("log10", False, "", 0, 1e3),
            ),
            DENSE, "downstream.depth",
        ),
        TaskInfo(
            "tracking", "single-object tracking, one-pass evaluation (mmdet)", 3,
            (
                Metric("SUC", True, "%", 0, 100), Metric("P", True, "%", 0, 100),
                # two conventions of normalised precision: SwinTrack's value at .20, the got10k toolkit's mean of the
                # curve; records of version 3 before call the first NP
                Metric("NP@.20", True, "%", 0, 100), Metric("NP mean", True, "%", 0, 100),
                Metric("AO", True, "%", 0, 100), Metric("SR50", True, "%", 0, 100), Metric("SR75", True, "%", 0, 100),
            ),
            FROZEN_FINETUNE, "downstream.tracking", data_parallel=False,
        ),
    )
}

# The same tasks on further data sets, whose numbers are other columns; only suites that have the data offer them.
for _task, _set, _title in (
    ("segmentation", "camvid", "CamVid"), ("pose", "crowdpose", "CrowdPose"), ("depth", "kitti", "KITTI, Eigen split"),
    ("tracking", "got10k", "GOT-10k, trained on it alone"), ("tracking", "otb", "OTB"),
):
    _info = TASKS[_task]
    TASKS[f"{_task}_{_set}"] = replace(_info, name=f"{_task}_{_set}", summary=f"{_info.summary} on {_title}")
TASKS["pose_crowdpose"] = replace(TASKS["pose_crowdpose"], metrics=(  # by how crowded the pictures are
    *TASKS["pose"].metrics, *(Metric(f"AP_{_part}", True, "%", 0, 100) for _part in ("easy", "medium", "hard"))))
TASKS["pose_lsp"] = replace(  # ranked by what its field counts: some hundreds of acrobats leave AP at 0
    TASKS["pose"], name="pose_lsp", summary="key points within .2 of the torso (PCK) on Leeds Sports Pose (mmpose)",
    metrics=(Metric("PCK", True, "%", 0, 100), *TASKS["pose"].metrics))


def evaluate(job: Job) -> Outcome:
    """Train the task's head (or everything) on its train part, score it on its test part.

    Raises:
        MissingData: the data set is not there.
        TaskError: anything else a user can mend (weights that do not fit, a truncated picture, …).
    """
    return module_of(job.task).evaluate(job)


def check(task: str, protocol: str, settings: dict[str, Any]) -> None:
    """Look at a cell's settings before anything is trained for it.

    Raises:
        TaskError: one that the task does not know or take.
    """
    nowhere = Path()
    module_of(task).settings_of(Job(nowhere, task, protocol, {}, settings, seed=0, device="cpu", work_dir=nowhere))


def module_of(task: str) -> ModuleType:
    """The code of a task, imported without its frameworks' chatter."""
    with redirect_stdout(io.StringIO()):  # the OpenMMLab forks print "Could not import OneDL" when imported
        return importlib.import_module(TASKS[task].module)
