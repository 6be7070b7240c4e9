"""Every task but tracking (see test_tracking), end to end on a dozen pictures, and what they say of damaged data."""

import os
import shutil
from pathlib import Path

import pytest
import torch
from mmengine.registry import MODELS
from safetensors.torch import load_file, save_file

from downstream import engine
from downstream.backbone import TimmBackbone, WeightsError, read_about
from downstream.engine import layer_groups
from downstream.task import TASKS, Job, MissingData, TaskError, evaluate

FOUR = ["classification", "segmentation", "pose", "depth"]
REAL = pytest.mark.skipif("BENCH_DATA" not in os.environ, reason="BENCH_DATA names no folder of real pictures")


CELLS = [(task, protocol) for task in FOUR for protocol in TASKS[task].protocols]


@pytest.mark.parametrize(("task", "protocol"), CELLS)
def test_a_task_gives_all_its_metrics_twice_the_same(task, protocol, make_job, backbone, capsys):
    before = (backbone / "backbone.safetensors").read_bytes()
    job = make_job(task, protocol)
    first = evaluate(job)
    assert set(first.metrics) == {metric.name for metric in TASKS[task].metrics}
    for metric in TASKS[task].metrics:
        assert metric.low <= first.metrics[metric.name] <= metric.high
    assert first.train_images >= 12
    assert evaluate(job).metrics == first.metrics
    assert (backbone / "backbone.safetensors").read_bytes() == before
    assert capsys.readouterr().out == ""
    assert sorted(path.name for path in job.work_dir.iterdir()) == ["log.jsonl"]


@pytest.mark.parametrize("protocol", ["frozen", "finetune"])
@pytest.mark.parametrize("task", FOUR)
def test_training_starts_from_the_folders_weights_and_every_rate_from_one_head(
    task, protocol, make_job, backbone, monkeypatch
):
    """mmengine's Runner initialises models when training begins: it must find nothing left to do."""
    before, starts, tested = {}, [], []

    def before_train(self, runner):
        starts.append({k: v.clone() for k, v in runner.model.state_dict().items()})

    def before_test(self, runner):
        tested.append({k: v.clone() for k, v in runner.model.backbone.net.state_dict().items()})

    monkeypatch.setattr(engine.Watch, "before_train", before_train)
    monkeypatch.setattr(engine.Watch, "before_test", before_test)
    before = load_file(backbone / "backbone.safetensors")
    evaluate(make_job(task, protocol, lr=[0.0, 0.0] if protocol == "frozen" else 0.0, epochs=1))
    assert all(torch.equal(tested[0][key], value) for key, value in before.items())
    assert all(torch.equal(starts[0][key], start[key]) for start in starts for key in starts[0])


def test_heads_learn_what_the_features_hold(make_job):
    outcome = evaluate(make_job("classification", epochs=40, lr=1e-2))
    assert outcome.metrics["top1"] >= 75  # the quadrant tells the class; chance is 25


# --- the seam ---------------------------------------------------------------------------------------------------------


def test_frozen_backbone_equals_timm_and_takes_other_sizes(backbone):
    module = MODELS.build({"type": "TimmBackbone", "folder": str(backbone), "out_indices": (0, -1)})
    assert not any(p.requires_grad for p in module.parameters())
    assert not module.train().training
    images = torch.randn(2, 3, 32, 32)
    maps = module(images)
    expected = module.net.forward_features(images)[:, 1:].transpose(1, 2).view(2, 32, 4, 4)
    assert torch.allclose(maps[-1], expected, atol=1e-5)
    assert [m.shape for m in module(torch.randn(1, 3, 48, 64))] == [(1, 32, 6, 8)] * 2


def test_a_size_that_the_patch_does_not_divide_is_refused(backbone):
    with pytest.raises(TaskError, match="multiple of the backbone's patch of 8"):
        TimmBackbone(backbone)(torch.randn(1, 3, 30, 30))


def test_swin_v2_gives_maps(make_backbone):
    kwargs = {"img_size": 64, "window_size": 4, "embed_dim": 16, "depths": [1, 1, 1, 1], "num_heads": [1, 2, 4, 8]}
    folder = make_backbone("swinv2_tiny_window8_256", kwargs)
    module = TimmBackbone(folder, out_indices=(1, -1), input_size=64)
    assert [m.shape for m in module(torch.randn(2, 3, 64, 64))] == [(2, 32, 8, 8), (2, 128, 2, 2)]


def test_weights_that_do_not_fit_name_their_keys(backbone, tmp_path):
    folder = tmp_path / "bad"
    shutil.copytree(backbone, folder)
    state = load_file(folder / "backbone.safetensors")
    state["blocks.9.extra"] = torch.zeros(1)
    state["norm.weight"] = torch.zeros(7)
    del state["cls_token"]
    save_file(state, folder / "backbone.safetensors")
    with pytest.raises(WeightsError, match=r"cls_token missing.*blocks\.9\.extra unexpected.*norm\.weight has shape"):
        TimmBackbone(folder)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"format": 99, "kwargs": {}}', '{"format": 1}'])
def test_a_damaged_description_is_one_line(content, tmp_path):
    (tmp_path / "backbone.json").write_text(content)
    with pytest.raises(WeightsError, match=r"backbone\.json"):
        read_about(tmp_path)


def test_a_damaged_weights_file_is_one_line(backbone, tmp_path):
    shutil.copytree(backbone, tmp_path / "b")
    (tmp_path / "b" / "backbone.safetensors").write_bytes(b"half")
    with pytest.raises(WeightsError, match="safetensors"):
        TimmBackbone(tmp_path / "b")


def test_layer_decay_follows_the_depth(backbone):
    model = torch.nn.Module()
    model.backbone = TimmBackbone(backbone, frozen=False)
    model.head = torch.nn.Linear(2, 2)
    groups = layer_groups(model, lr=1.0, weight_decay=0.1, decay=0.5)
    rate = {id(p): group["lr"] for group in groups for p in group["params"]}
    named = dict(model.named_parameters())
    for name, expected in {
        "head.weight": 1.0, "backbone.net.norm.weight": 1.0, "backbone.net.blocks.1.mlp.fc1.weight": 0.5,
        "backbone.net.blocks.0.mlp.fc1.weight": 0.25, "backbone.net.patch_embed.proj.weight": 0.125,
        "backbone.net.pos_embed": 0.125,
    }.items():
        assert rate[id(named[name])] == expected, name
    assert all(p.ndim > 1 for group in groups if group["weight_decay"] for p in group["params"])
    assert sum(len(group["params"]) for group in groups) == len(named)


def test_the_head_may_learn_faster_than_the_backbone(backbone):
    model = torch.nn.Module()
    model.backbone = TimmBackbone(backbone, frozen=False)
    model.head = torch.nn.Linear(2, 2)
    plain, fast = ({id(p): group["lr"] for group in layer_groups(model, 0.5, 0.1, 0.5, head_rate=rate)
                    for p in group["params"]} for rate in (1.0, 10.0))
    for name, parameter in model.named_parameters():
        assert fast[id(parameter)] == (5.0 if name.startswith("head.") else plain[id(parameter)]), name


@pytest.mark.parametrize("merging_layers", [True, False])
def test_layer_decay_of_a_swin(merging_layers, make_backbone):
    """Depth's code of 2205.13543 counts a merging as a layer; SimMIM's leaves it with the block before it."""
    kwargs = {"img_size": 64, "window_size": 2, "embed_dim": 16, "depths": [1, 2], "num_heads": [1, 2]}
    model = torch.nn.Module()
    model.backbone = TimmBackbone(make_backbone("swin_tiny_patch4_window7_224", kwargs), frozen=False)
    groups = layer_groups(model, 1.0, 0.1, 0.5, merging_layers)
    rate = {id(p): group["lr"] for group in groups for p in group["params"]}
    named = dict(model.named_parameters())
    extra = 0.5 if merging_layers else 1.0
    for name, expected in {
        "norm.weight": 1.0, "layers.1.blocks.1.mlp.fc1.weight": 0.5, "layers.1.blocks.0.mlp.fc1.weight": 0.25,
        "layers.1.downsample.reduction.weight": 0.125, "layers.0.blocks.0.mlp.fc1.weight": 0.125 * extra,
        "patch_embed.proj.weight": 0.0625 * extra,
    }.items():
        assert rate[id(named[f"backbone.net.{name}"])] == expected, name


@pytest.mark.parametrize("model", ["vit_tiny_patch16_224", "beit_base_patch16_224"])
def test_only_the_last_map_passes_the_final_norm(model, make_backbone):
    """As in mmseg's MAE and BEiT; a ViT of timm's would normalise the inner ones, too."""
    kwargs = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2}
    kwargs |= {"use_fc_norm": False} if model.startswith("beit") else {}
    module = TimmBackbone(make_backbone(model, kwargs), out_indices=(0, -1))
    torch.nn.init.constant_(module.net.norm.weight, 3.0)  # 1 would show little on the last map
    images = torch.randn(1, 3, 32, 32)
    inner, last = module(images)
    plain = module.net.forward_intermediates(images, indices=[0], norm=False, intermediates_only=True)[0]
    normed = module.net.forward_intermediates(images, indices=[2], norm=True, intermediates_only=True)[0]
    assert torch.equal(inner, plain)
    assert torch.allclose(last, normed, atol=1e-6)
    module.out_indices = (2,)
    assert torch.equal(module(images)[0], normed)


@pytest.mark.parametrize(
    ("size", "windows"), [(480, [30, 30, 30, 15]), (352, [22, 22, 22, 11]), (224, [14, 14, 14, 7])])
def test_windows_of_swin_v2_are_the_official_ones(size, windows, make_backbone):
    """Pre-trained at 192 px with 12, 12, 12, 6: depth on NYUv2 and KITTI (2205.13543), classification (SimMIM)."""
    kwargs = {"img_size": 192, "embed_dim": 8, "depths": [2, 2, 2, 2], "num_heads": [1, 1, 1, 1]}
    net = TimmBackbone(make_backbone("swinv2_base_window12_192", kwargs), input_size=size).net
    assert [stage.blocks[1].attn.window_size for stage in net.layers] == [(side, side) for side in windows]
    assert [any(stage.blocks[1].shift_size) for stage in net.layers] == [True, True, False, False]
    assert [stage.blocks[1].attn.pretrained_window_size for stage in net.layers] == [(12, 12)] * 3 + [(6, 6)]


# --- metrics ----------------------------------------------------------------------------------------------------------


def test_miou_by_hand():
    from mmseg.evaluation import IoUMetric

    metric = IoUMetric(iou_metrics=["mIoU"], ignore_index=255)
    metric.dataset_meta = {"classes": ["a", "b", "c"]}
    truth = torch.tensor([[0, 0, 1, 1], [0, 255, 1, 1]])
    guess = torch.tensor([[0, 1, 1, 1], [0, 0, 1, 0]])
    metric.process({}, [{"pred_sem_seg": {"data": guess}, "gt_sem_seg": {"data": truth}}])
    found = metric.evaluate(1)
    # a: 2 hits of union 3 + 1; b: 3 of 4 + 1; c never occurs and does not count
    assert found["mIoU"] == pytest.approx(100 * (2 / 4 + 3 / 5) / 2, abs=0.01)
    assert found["aAcc"] == pytest.approx(100 * 5 / 7, abs=0.01)


def test_depth_metrics_are_per_picture_then_averaged_over_valid_pixels():
    from downstream.depth import PictureDepthMetric

    metric = PictureDepthMetric(min_depth_eval=1e-3, max_depth_eval=10.0)
    pairs = [([[1.0, 2.0, 0.0, 0.0]], [[1.0, 3.0, 9.0, 9.0]]), ([[4.0, 4.0, 4.0, 4.0]], [[4.4] * 4]),
             ([[0.0] * 4], [[1.0] * 4])]
    metric.process({}, [
        {"gt_depth_map": {"data": torch.tensor(truth)}, "pred_depth_map": {"data": torch.tensor(guess)}}
        for truth, guess in pairs
    ])
    found = metric.evaluate(3)
    assert metric.per_item == pytest.approx([0.5**0.5, 0.4], abs=1e-6)  # zeros are invalid; the last has no pixel
    assert found["rmse"] == pytest.approx((0.5**0.5 + 0.4) / 2, abs=1e-6)
    assert found["abs_rel"] == pytest.approx((0.25 + 0.1) / 2, abs=1e-6)
    assert found["d1"] == pytest.approx((0.5 + 1.0) / 2, abs=1e-6)


def _oks_ap(annotations, shift, folder, backbone):
    """AP of ground truth moved by ``shift`` pixels, by the recipe's metric and by pycocotools.

    Every third person is found twice, with the lower score at the second time: OKS-NMS has to drop it. A person's
    score is that of the box times the mean of the key points' above .2 (mmpose's rescoring).
    """
    import contextlib
    import io

    import numpy as np
    from mmengine.registry import METRICS
    from mmpose.datasets.datasets.body import CocoDataset
    from mmpose.datasets.datasets.utils import parse_pose_metainfo
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    from downstream import engine
    from downstream.pose import DEFAULTS, recipe

    section = {"root": str(annotations.parent), "train_images": ".", "val_images": ".",
               "train_annotations": annotations.name, "val_annotations": annotations.name}
    job = Job(backbone, "pose", "frozen", section, {}, 0, "cpu", folder)
    rng = np.random.default_rng(0)
    with engine.quiet("mmpose"), contextlib.redirect_stdout(io.StringIO()):
        metric = METRICS.build(recipe(job, {**engine.COMMON, **DEFAULTS, "input_size": 32}).metric)
        metric.dataset_meta = parse_pose_metainfo(CocoDataset.METAINFO)
        coco, rows, samples = COCO(str(annotations)), [], []
        for number, annotation in enumerate(coco.loadAnns(coco.getAnnIds(iscrowd=False))):
            if not annotation["num_keypoints"]:
                continue
            points = np.array(annotation["keypoints"], float).reshape(17, 3)
            moved = points[:, :2] + rng.normal(0, shift, (17, 2)) if shift else points[:, :2]
            score, sure = float(rng.uniform(0.5, 1)), rng.uniform(0, 1, 17)
            rows.append({"image_id": annotation["image_id"], "category_id": 1, "score": score * sure[sure > 0.2].mean(),
                         "keypoints": np.concatenate([moved, np.ones((17, 1))], 1).flatten().tolist()})
            for again in range(1 + (number % 3 == 0)):
                samples.append({
                    "id": annotation["id"] + 10**9 * again, "img_id": annotation["image_id"], "category_id": 1,
                    "gt_instances": {"bbox_scores": np.array([score * 0.9**again]), "bbox_scales": np.ones((1, 2))},
                    "pred_instances": {"keypoints": moved[None], "keypoint_scores": sure[None]}})
        metric.process({}, samples)
        ours = metric.evaluate(len(samples))["coco/AP"]
        judged = COCOeval(coco, coco.loadRes(rows), "keypoints")
        judged.evaluate()
        judged.accumulate()
        judged.summarize()
    return ours, judged.stats[0]


def test_oks_ap_is_one_for_the_truth_and_pycocotools_for_a_perturbed_one(data, tmp_path, backbone):
    assert _oks_ap(data / "coco" / "val.json", 0, tmp_path, backbone)[0] == pytest.approx(1.0)
    ours, theirs = _oks_ap(data / "coco" / "val.json", 2.0, tmp_path, backbone)
    assert 0 < theirs < 1
    assert ours == pytest.approx(theirs, abs=1e-9)


@REAL
@pytest.mark.realdata
def test_oks_ap_on_coco_equals_pycocotools(tmp_path, backbone):
    path = Path(os.environ["BENCH_DATA"]) / "coco_keypoints_mini/annotations/person_keypoints_val2017.json"
    ours, theirs = _oks_ap(path, 8.0, tmp_path, backbone)
    assert 0 < theirs < 1
    assert ours == pytest.approx(theirs, abs=1e-9)


# --- damaged data -----------------------------------------------------------------------------------------------------


@pytest.fixture
def copied(data, tmp_path):
    shutil.copytree(data, tmp_path / "data")
    return tmp_path / "data"


@pytest.mark.parametrize(
    ("task", "file"),
    [("classification", "imagenet/train/a/0.jpg"), ("segmentation", "ade/images/training/0.jpg"),
     ("pose", "coco/val/0.jpg"), ("depth", "nyu/s/rgb_val_0.jpg"), ("depth", "nyu/s/depth_train_0.png"),
     ("segmentation", "ade/annotations/validation/0.png")],
)
def test_a_truncated_file_is_named(task, file, copied, make_job):
    path = copied / file
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(TaskError, match="cannot be read as a picture") as caught:
        evaluate(make_job(task, root=copied))
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("task", "file"),
    [("segmentation", "ade/annotations/training/0.png"), ("pose", "coco/train/0.jpg"),
     ("depth", "nyu/s/rgb_val_0.jpg")],
)
def test_an_annotation_without_its_picture_is_named(task, file, copied, make_job):
    (copied / file).unlink()
    with pytest.raises(TaskError) as caught:
        evaluate(make_job(task, root=copied))
    assert Path(file).name in str(caught.value)


@pytest.mark.parametrize(
    ("task", "gone"),
    [("classification", "imagenet/val"), ("segmentation", "ade/annotations"), ("pose", "coco/val.json"),
     ("depth", "nyu/val.txt")],
)
def test_a_missing_part_is_missing_data(task, gone, copied, make_job):
    path = copied / gone
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(MissingData, match=path.name):
        evaluate(make_job(task, root=copied))


def test_a_label_beyond_the_classes_is_named(copied, make_job):
    (copied / "ade" / "objectInfo.txt").write_text("Idx\tName\n1\tone\n")
    with pytest.raises(TaskError, match="lists 1 classes"):
        evaluate(make_job("segmentation", root=copied))


def test_half_written_annotations_are_named(copied, make_job):
    (copied / "coco" / "train.json").write_text('{"images": [')
    with pytest.raises(TaskError, match=r"train\.json is not COCO"):
        evaluate(make_job("pose", root=copied))


def test_an_unknown_setting_is_named(make_job):
    with pytest.raises(TaskError, match="no setting 'epoch'"):
        evaluate(make_job("depth", epoch=3))


def test_a_rate_that_diverges_is_said_so(make_job):
    with pytest.raises(TaskError, match="lower lr"):
        evaluate(make_job("classification", "finetune", lr=1e30, epochs=3))


def test_pictures_are_mixed_in_fine_tuning_only(make_job):
    """The labels of whole pictures are no soft ones."""
    plain, mixed = (
        evaluate(make_job("classification", "frozen", lr=1e-2, epochs=2, **more)) for more in ({}, {"mixup": 0.8})
    )
    assert mixed.metrics == plain.metrics


@pytest.mark.parametrize("protocol", ["frozen", "finetune"])
def test_the_device_is_the_jobs_and_not_the_first_that_mmengine_finds(protocol, make_job, monkeypatch):
    monkeypatch.setattr("mmengine.runner.runner.get_device", lambda: pytest.fail("asked for a device"))
    evaluate(make_job("depth", protocol, lr=1e-3, epochs=1))


# --- real pictures ----------------------------------------------------------------------------------------------------


@REAL
@pytest.mark.realdata
@pytest.mark.parametrize("task", ["classification", "segmentation", "pose_lsp", "depth"])
def test_real_pictures_go_through_the_same_classes(task, backbone, tmp_path):
    from benchmarks import suite
    from benchmarks.data import section

    mini = suite.get("mini")
    data = section(mini, task, Path(os.environ["BENCH_DATA"]))
    size = {"segmentation": (48, 64), "pose_lsp": (64, 48)}.get(task, 32)
    settings = {"input_size": size, "epochs": 1, "batch_size": 8, "lr": 1e-3, "train_limit": 24, "test_limit": 12}
    outcome = evaluate(Job(backbone, task, "frozen", data, settings, 0, "cpu", tmp_path))
    assert outcome.metrics[TASKS[task].metrics[0].name] >= 0


@REAL
@pytest.mark.realdata
def test_the_real_ade20k_sample_loads():
    from downstream.segmentation import AdeLayout, read_classes

    root = Path(os.environ["BENCH_DATA"]) / "ade20k_sample" / "ADEChallengeData2016"
    classes = read_classes(root)
    assert len(classes) == 150
    assert classes[:3] == ["wall", "building, edifice", "sky"]
    data = AdeLayout(
        data_root=str(root), metainfo={"classes": classes}, test_mode=True,
        data_prefix={"img_path": "images/validation", "seg_map_path": "annotations/validation"},
        pipeline=[{"type": "mmengine.ReadPicture"}, {"type": "mmseg.ReadLabels", "num_classes": 150},
                  {"type": "mmseg.PackSegInputs"}],
    )
    assert len(data) == 3
    labels = data[0]["data_samples"].gt_sem_seg.data
    assert labels.shape[1:] == data[0]["inputs"].shape[1:]
    assert set(labels.unique().tolist()) <= {*range(150), 255}


