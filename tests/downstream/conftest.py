import json

import pytest
import timm
import torch
from safetensors.torch import save_file

from downstream.task import Job

VIT = ("vit_tiny_patch16_224", {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2})


def write_backbone(folder, model=VIT[0], kwargs=VIT[1], seed=0):
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    net = timm.create_model(model, **{**kwargs, "num_classes": 0})
    save_file({k: v.contiguous() for k, v in net.state_dict().items()}, folder / "backbone.safetensors")
    (folder / "backbone.json").write_text(json.dumps({"format": 1, "model": model, "kwargs": kwargs}))
    return folder


@pytest.fixture
def make_backbone(tmp_path):
    """A factory of backbone folders with random weights: ``make_backbone(model, kwargs)``."""
    return lambda model, kwargs: write_backbone(tmp_path / model, model, kwargs)


@pytest.fixture(scope="session")
def backbone(tmp_path_factory):
    """A tiny random ViT: 32 px, patch 8."""
    return write_backbone(tmp_path_factory.mktemp("backbone"))


SECTIONS = {
    "classification": {"root": "imagenet", "train": "train", "val": "val"},
    "segmentation": {"root": "ade", "train": "training", "val": "validation"},
    "pose": {"root": "coco", "train_images": "train", "val_images": "val", "train_annotations": "train.json",
             "val_annotations": "val.json"},
    "depth": {"root": "nyu", "train_list": "train.txt", "test_list": "val.txt", "max_depth": 10.0,
              "depth_scale": 1000, "crop": None},
}
TINY = {"input_size": 32, "epochs": 2, "batch_size": 4, "lr": [1e-3, 1e-2]}


@pytest.fixture
def make_job(backbone, data, tmp_path):
    """A factory of jobs on the tiny data: ``make_job("depth", "frozen", epochs=…)``."""

    def make(task, protocol="frozen", root=None, folder=None, **settings):
        section = {**SECTIONS[task], "root": str((root or data) / SECTIONS[task]["root"])}
        (tmp_path / "work").mkdir(exist_ok=True)
        return Job(folder or backbone, task, protocol, section, {**TINY, **settings}, 0, "cpu", tmp_path / "work")

    return make
