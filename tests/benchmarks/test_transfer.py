"""Layer-wise transfer and cut backbones: the tasks' own protocols, layer by layer."""

import json
import shutil

import pytest
import timm
import torch

from benchmarks import studies, transfer
from benchmarks.errors import RequestError
from benchmarks.suite import get
from downstream import layers
from downstream.backbone import TimmBackbone
from downstream.task import Job, TaskError, evaluate
from leaderboard.analyses import read_analyses
from leaderboard.details import CUT, LAYERS
from leaderboard.records import read_records

VIT = ("vit_tiny_patch16_224", {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2})
SWIN = ("swin_tiny_patch4_window7_224", {
    "img_size": 32, "patch_size": 4, "embed_dim": 16, "depths": (1, 2), "num_heads": (2, 4), "window_size": 4})
LIGHT = {"input_size": 32, "epochs": 1, "batch_size": 4, "lr": [1e-2, 1e-1]}


@pytest.fixture(scope="module")
def backbones(tmp_path_factory):
    """Runs with a ViT of three blocks (simmim) and a Swin of stages of one and two blocks (mae)."""
    from safetensors.torch import save_file

    runs = tmp_path_factory.mktemp("transfer") / "runs"
    for name, (model, kwargs) in (("simmim", VIT), ("mae", SWIN)):
        folder = runs / "mini" / name / "seed0" / "pretrain"
        folder.mkdir(parents=True)
        torch.manual_seed(0)
        net = timm.create_model(model, **{**kwargs, "num_classes": 0})
        save_file({k: v.contiguous() for k, v in net.state_dict().items()}, folder / "backbone.safetensors")
        (folder / "backbone.json").write_text(json.dumps({
            "format": 1, "model": model, "kwargs": kwargs, "objective": name, "suite": "mini", "seed": 0}))
    return runs


def job_of(data, backbone, tmp_path, task, protocol="frozen", **settings):
    sections = {
        "classification": {"root": str(data / "imagenet"), "train": "train", "val": "val"},
        "depth": {"root": str(data / "nyu"), "train_list": "train.txt", "test_list": "val.txt", "max_depth": 10.0,
                  "depth_scale": 1000, "crop": None},
        "pose": {"root": str(data / "coco"), "train_images": "train", "val_images": "val",
                 "train_annotations": "train.json", "val_annotations": "val.json"},
    }
    return Job(backbone=backbone, task=task, protocol=protocol, data=sections[task],
               settings={**LIGHT, **settings}, seed=0, device="cpu", work_dir=tmp_path)


@pytest.mark.parametrize("task", ["classification", "depth"])
def test_each_layer_scores_as_its_own_cell(data, backbones, tmp_path, monkeypatch, task):
    job = job_of(data, backbones / "mini" / "simmim" / "seed0" / "pretrain", tmp_path, task)
    runs = []
    whole = TimmBackbone.forward
    monkeypatch.setattr(TimmBackbone, "forward", lambda self, x: runs.append(len(x)) or whole(self, x))
    found = dict(layers.frozen_scores(job))
    assert list(found) == ["1", "2", "3"]
    once = list(runs)
    runs.clear()
    alone = {"2": evaluate(layers.replace(job, settings={**job.settings, "out_indices": (1,)})), "3": evaluate(job)}
    assert len(once) * 2 == len(runs)  # the backbone ran for the first layer only
    for name, outcome in alone.items():
        assert outcome.metrics == found[name].metrics
        assert outcome.chosen == found[name].chosen
    assert not list(tmp_path.glob(".maps-*"))


def test_the_stages_of_a_swin(data, backbones, tmp_path):
    folder = backbones / "mini" / "mae" / "seed0" / "pretrain"
    assert layers.layer_names(folder) == ["1", "2"]
    job = job_of(data, folder, tmp_path, "pose", lr=1e-2)  # a stage's heat map is as fine as its tokens are
    assert list(dict(layers.frozen_scores(job))) == ["1", "2"]


def test_maps_of_other_pictures_are_refused(backbones, tmp_path):
    maps = layers.LayerMaps(tmp_path)
    net = layers.LayerBackbone(maps, folder=backbones / "mini" / "simmim" / "seed0" / "pretrain", out_indices=(1,))
    first = torch.randn(2, 3, 32, 32)
    maps.begin()
    (once,) = net(first)
    maps.begin()
    (again,) = net(first)
    assert torch.equal(once, again)
    maps.begin()
    with pytest.raises(TaskError, match="other pictures"):
        net(first + 1)
    with pytest.raises(TaskError, match="2 maps at once"):
        layers.LayerBackbone(maps, folder=backbones / "mini" / "simmim" / "seed0" / "pretrain", out_indices=(0, 1))


def test_a_cut_backbone_is_the_whole_one_up_to_there(backbones, tmp_path):
    for name, keep, of in (("simmim", 2, 3), ("mae", 2, 3)):
        folder = backbones / "mini" / name / "seed0" / "pretrain"
        assert layers.block_count(folder) == of
        small = TimmBackbone(layers.cut(folder, keep, tmp_path / name), input_size=32)
        assert layers.block_count(tmp_path / name) == keep
        whole = TimmBackbone(folder, input_size=32)
        x = torch.randn(1, 3, 32, 32)
        if name == "simmim":
            inner = TimmBackbone(folder, out_indices=(1,))(x)[0]  # as it is; the cut one ends with the whole's norm
            normed = whole.net.norm(inner.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
            torch.testing.assert_close(small(x)[0], normed)
        else:
            assert small(x)[0].shape == whole(x)[0].shape
    with pytest.raises(TaskError, match="1 to 3 can be kept, not 0"):
        layers.cut(backbones / "mini" / "simmim" / "seed0" / "pretrain", 0, tmp_path / "none")
    with pytest.raises(TaskError, match="2 to 3 can be kept"):
        layers.cut(backbones / "mini" / "mae" / "seed0" / "pretrain", 1, tmp_path / "none")


def test_fine_tuning_without_the_last_blocks(data, backbones, tmp_path):
    folder = backbones / "mini" / "simmim" / "seed0" / "pretrain"
    job = job_of(data, folder, tmp_path, "classification", "finetune", lr=1e-3)
    found = dict(layers.cut_scores(job, [2, 0]))
    assert list(found) == ["1", "3"]
    assert found["3"].metrics == evaluate(job).metrics  # the whole is the ordinary cell
    with pytest.raises(TaskError, match="reads layer 3, which is cut off"):
        list(layers.cut_scores(layers.replace(job, settings={**job.settings, "out_indices": (0, 2)}), [1]))


@pytest.fixture
def runs(backbones, tmp_path):
    return shutil.copytree(backbones, tmp_path / "runs")


def test_records_and_figures_of_the_command(call, mini, runs, tmp_path, monkeypatch):
    suite = get("mini")
    light = {protocol: {**LIGHT, "train_limit": 8} for protocol in ("frozen", "finetune")}
    monkeypatch.setitem(suite.settings, "classification", light)
    common = ("analyze", "--suite", "mini", "--runs", runs, "--data-root", mini, "--objective", "simmim",
              "--tasks", "classification")
    code, out, err = call(*common, "--transfer", "--figures", tmp_path / "figures")
    assert code == 0, err
    assert "classification top1 (%) ↑, frozen, layer" in out
    assert sorted(p.name for p in (tmp_path / "figures").iterdir()) == ["layer-transfer.png", "layer-transfer.svg"]
    code, _, err = call(*common, "--transfer")
    assert "scored already" in err
    code, out, err = call(*common, "--drop", "0,1", "--format", "json")
    assert code == 0, err
    assert [layer["name"] for layer in json.loads(out)["rows"][0]["layers"]] == ["2", "3"]
    found = {record.protocol: record for record in read_analyses([runs])}
    assert set(found) == {LAYERS, CUT}
    assert [layer["name"] for layer in found[LAYERS].details["layers"]] == ["1", "2", "3"]
    top1 = found[LAYERS].details["layers"][-1]["metrics"]["top1"]
    assert found[LAYERS].metrics["top1"]["value"] == pytest.approx(top1)
    assert read_records([runs]) == ([], [])  # nothing that ranks
    assert not list(runs.rglob(".work-*"))
    code, _, err = call(*common, "--drop", "9")
    assert code == 1
    code, _, err = call(*common, "--drop", "x")
    assert code == 2
    assert "--drop" in err


def test_wrong_tasks(backbones):
    with pytest.raises(RequestError, match="classification"):
        transfer.chosen_tasks(get("embedded"), ["clasification"], LAYERS)
    with pytest.raises(RequestError, match="at least one"):
        transfer.chosen_tasks(get("embedded"), [], CUT)
    assert len(transfer.chosen_tasks(get("embedded"), ["all"], LAYERS)) == 5
    with pytest.raises(RequestError, match="seed 4"):
        studies.find_backbones(backbones, "mini", [], 4)
