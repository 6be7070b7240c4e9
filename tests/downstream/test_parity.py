"""Metrics against their definitions and the reference implementations, and real samples through the tasks' classes."""

import contextlib
import io
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from downstream import engine
from downstream.task import Job

REAL = pytest.mark.skipif("BENCH_DATA" not in os.environ, reason="BENCH_DATA names no folder of real pictures")
# CrowdPose's own evaluation (Jeff-sjtu/CrowdPose): shoulders, elbows, wrists, hips, knees, ankles, head, neck
CROWDPOSE_SIGMAS = np.array([.79, .79, .72, .72, .62, .62, 1.07, 1.07, .87, .87, .89, .89, .79, .79]) / 10


@pytest.fixture
def root():
    return Path(os.environ["BENCH_DATA"])


def metric_of(task, section, tmp_path, backbone, **settings):
    """Metric and test set of a task as the task itself builds them, with default settings."""
    import importlib

    from mmengine.registry import DATASETS, METRICS

    module = importlib.import_module(f"downstream.{task}")
    chosen = {**engine.COMMON, **module.DEFAULTS, **settings}
    job = Job(backbone, task, "frozen", section, {}, 0, "cpu", tmp_path)
    more = [module.read_classes(Path(section["root"]))] if task == "segmentation" else []
    with engine.quiet({"segmentation": "mmseg", "depth": "mmseg", "pose": "mmpose"}[task]):
        made = module.recipe(job, chosen, *more)
        metric, data = METRICS.build(made.metric), DATASETS.build(made.test)
        data.full_init()
        metric.dataset_meta = data.metainfo
    return metric, data


# --- pose -------------------------------------------------------------------------------------------------------------


def oks(guess, truth, sigmas, area):
    """OKS of one person by its definition; ``truth`` (K, 3) with visibility."""
    seen = truth[:, 2] > 0
    d2 = ((guess - truth[:, :2]) ** 2).sum(1)[seen]
    return np.exp(-d2 / (2 * sigmas[seen]) ** 2 / area / 2).mean()


def average_precision(overlaps):
    """AP of one person a picture, all found with one score: the share of persons above each threshold, averaged."""
    return np.mean([(np.asarray(overlaps) >= t).mean() for t in np.linspace(0.5, 0.95, 10)])


def pose_metric(layout, images, people, points, tmp_path, backbone):
    """Metric and test set on these annotations of ``points`` key points."""
    content = {"images": images, "annotations": people, "categories": [
        {"id": 1, "name": "person", "keypoints": [f"k{i}" for i in range(points)], "skeleton": []}]}
    (tmp_path / "val.json").write_text(json.dumps(content))
    section = {"root": str(tmp_path), "layout": layout, "train_images": ".", "val_images": ".",
               "train_annotations": "val.json", "val_annotations": "val.json"}
    return metric_of("pose", section, tmp_path, backbone, input_size=32)


def predicted(person, image, points):
    """What mmpose hands its metrics: ``points`` (K, 2) found for a person of the annotations."""
    return {"id": person, "img_id": image, "category_id": 1,
            "gt_instances": {"bbox_scores": np.ones(1), "bbox_scales": np.ones((1, 2))},
            "pred_instances": {"keypoints": points[None], "keypoint_scores": np.ones((1, len(points)))}}


def test_crowdpose_takes_its_sigmas_and_no_area(tmp_path, backbone):
    """One person a picture, moved by as much as makes AP depend on the sigmas and on what stands for the area."""
    rng = np.random.default_rng(0)
    images, people, moved, overlaps = [], [], [], []
    for i in range(1, 21):
        points = np.concatenate([rng.uniform(20, 180, (14, 2)).round(1), np.full((14, 1), 2.0)], 1)
        box = [10.0, 10.0, 180.0, 170.0]
        images.append({"id": i, "file_name": f"{i}.jpg", "width": 200, "height": 200, "crowdIndex": i / 25})
        people.append({"id": i, "image_id": i, "category_id": 1, "iscrowd": 0, "bbox": box, "num_keypoints": 14,
                       "keypoints": points.flatten().tolist()})
        moved.append(points[:, :2] + rng.normal(0, 2 + 0.8 * i, (14, 2)))
        overlaps.append(oks(moved[-1], points, CROWDPOSE_SIGMAS, 0.53 * box[2] * box[3]))
    metric, data = pose_metric("crowdpose", images, people, 14, tmp_path, backbone)
    assert np.allclose(data.metainfo["sigmas"], CROWDPOSE_SIGMAS)
    assert len(data) == 20
    metric.process({}, [predicted(i, i, points) for i, points in enumerate(moved, 1)])
    with contextlib.redirect_stdout(io.StringIO()):
        found = metric.evaluate(20)
    expected = average_precision(overlaps)
    assert 0.2 < expected < 0.8
    assert found["coco/AR"] == pytest.approx(expected, abs=1e-6)  # one a picture: recall is the share above
    wrong = np.mean([average_precision([oks(m, np.array(p["keypoints"]).reshape(14, 3), CROWDPOSE_SIGMAS, 900.0)
                                        for m, p in zip(moved, people, strict=True)])])
    assert abs(wrong - expected) > 0.05  # the area does matter here


def test_pck_counts_what_is_within_a_fifth_of_the_torso(tmp_path, backbone):
    """Torso of 50 px, so 10 px: three people with 12, 6 and 1 of 12 labelled points near enough; the face has none.

    Of a fourth one the shoulder is not labelled: there is no torso to measure by.
    """
    truth = np.zeros((17, 3))
    truth[5:, :2] = np.arange(12)[:, None] * 5 + 60
    truth[5, :2], truth[12, :2], truth[5:, 2] = (60, 60), (90, 100), 2
    images = [{"id": i, "file_name": f"{i}.jpg", "width": 200, "height": 200} for i in (1, 2, 3, 4)]
    people = [{"id": 10 * i, "image_id": i, "category_id": 1, "iscrowd": 0, "bbox": [40.0, 40.0, 120.0, 120.0],
               "area": 7632.0, "num_keypoints": 12, "keypoints": truth.flatten().tolist()} for i in (1, 2, 3, 4)]
    people[3]["keypoints"] = [*truth[:5].flatten().tolist(), 0, 0, 0, *truth[6:].flatten().tolist()]
    metric, _ = pose_metric("lsp", images, people, 17, tmp_path, backbone)
    for i, near in ((1, 12), (2, 6), (3, 1), (4, 12)):
        guess = truth[:, :2] + (0, 10.1)
        guess[5 : 5 + near] = truth[5 : 5 + near, :2] + (9.9, 0)
        metric.process({}, [predicted(10 * i, i, guess)])
    with contextlib.redirect_stdout(io.StringIO()):
        found = metric.evaluate(4)
    assert metric.per_item["PCK"] == pytest.approx([100, 50, 100 / 12])
    assert found["coco/PCK"] == pytest.approx(19 / 36)
    assert 0 < found["coco/AP"] < 1


# --- segmentation -----------------------------------------------------------------------------------------------------


@REAL
@pytest.mark.realdata
def test_miou_on_ade20k_is_the_definition(root, tmp_path, backbone):
    section = {"root": str(root / "ade20k_sample/ADEChallengeData2016"), "train": "validation", "val": "validation"}
    ours, data = metric_of("segmentation", section, tmp_path, backbone)
    generator = torch.Generator().manual_seed(0)
    hits, union = torch.zeros(150), torch.zeros(150)
    for sample in data:
        truth = sample["data_samples"].gt_sem_seg.data
        noise = torch.randint(0, 150, truth.shape, generator=generator)
        guess = torch.where(torch.rand(truth.shape, generator=generator) < 0.6, truth.clamp(max=149).long(), noise)
        valid = truth != 255
        for c in range(150):
            a, b = (guess == c) & valid, (truth == c) & valid
            hits[c] += (a & b).sum()
            union[c] += (a | b).sum()
        ours.process({}, [{"pred_sem_seg": {"data": guess}, "gt_sem_seg": {"data": truth.long()}}])
    found = ours.evaluate(3)
    assert found["mIoU"] == pytest.approx(100 * (hits / union)[union > 0].mean().item(), abs=0.01)
    assert 1 < found["mIoU"] < 99


# --- depth ------------------------------------------------------------------------------------------------------------


def by_definition(truth, guess):
    """The measures of one picture over its valid pixels (1-D arrays)."""
    ratio, d = np.maximum(truth / guess, guess / truth), np.log(guess) - np.log(truth)
    return {
        "d1": (ratio < 1.25).mean(), "d2": (ratio < 1.25**2).mean(), "d3": (ratio < 1.25**3).mean(),
        "abs_rel": (abs(guess - truth) / truth).mean(), "sq_rel": ((guess - truth) ** 2 / truth).mean(),
        "rmse": np.sqrt(((guess - truth) ** 2).mean()), "rmse_log": np.sqrt((d**2).mean()),
        "log10": abs(np.log10(guess) - np.log10(truth)).mean(),
        "silog": np.sqrt((d**2).mean() - 0.5 * d.mean() ** 2),
    }


@pytest.mark.parametrize(
    ("crop", "size", "rows", "columns"),
    [(None, (48, 64), (0, 48), (0, 64)), ("eigen", (480, 640), (45, 471), (41, 601)),
     ("garg", (352, 1216), (143, 349), (43, 1172))],
)
def test_depth_measures_every_picture_where_it_is_valid_and_scored(crop, size, rows, columns):
    from downstream.depth import PictureDepthMetric

    rng = np.random.default_rng(1)
    metric = PictureDepthMetric(crop=crop, min_depth_eval=1e-3, max_depth_eval=80.0)
    expected = []
    for share in (0.9, 0.02):  # the second picture has few valid pixels and counts as much
        truth = rng.uniform(0.5, 79, size).astype(np.float32)
        guess = (truth * rng.uniform(0.6, 1.7, size)).astype(np.float32)
        truth[rng.random(size) > share] = 0
        guess[truth == 0] = 1e6  # what is predicted there must not matter
        inside = np.zeros(size, bool)
        inside[slice(*rows), slice(*columns)] = True
        guess[~inside] = 1e6
        valid = (truth > 0) & inside
        expected.append(by_definition(truth[valid].astype(float), guess[valid].astype(float)))
        metric.process({}, [{"gt_depth_map": {"data": torch.tensor(truth)}, "pred_depth_map": {
            "data": torch.tensor(guess)}}])
    found = metric.evaluate(2)
    for name in expected[0]:
        assert found[name] == pytest.approx(np.mean([e[name] for e in expected]), rel=1e-4), name
    assert metric.per_item == pytest.approx([e["rmse"] for e in expected], rel=1e-4)


# --- every sample folder through the class of the full set ------------------------------------------------------------


def coco(root, folder, images, annotations):
    return {"root": str(root / folder), "train_images": images, "val_images": images,
            "train_annotations": annotations, "val_annotations": annotations}


@REAL
@pytest.mark.realdata
@pytest.mark.parametrize(
    ("task", "section", "count"),
    [
        ("segmentation", lambda r: {"root": str(r / "ade20k_sample/ADEChallengeData2016"), "train": "validation",
                                    "val": "validation"}, 3),
        ("pose", lambda r: coco(r, "coco_keypoints_mini", "val2017", "annotations/person_keypoints_val2017.json"), 38),
        ("pose", lambda r: coco(r, "lspet_pose", "images", "annotations/person_keypoints_val.json"), 140),
        ("depth", lambda r: {"root": str(r / "rgbd_nyu_layout"), "train_list": "filenames/nyudepthv2/train_list.txt",
                             "test_list": "filenames/nyudepthv2/test_list.txt", "max_depth": 10.0,
                             "depth_scale": 1000, "crop": "eigen"}, 27),
    ],
    ids=["ade20k", "coco", "lsp", "nyu"],
)
def test_samples_load_through_the_classes_of_the_full_sets(task, section, count, root, tmp_path, backbone):
    _, data = metric_of(task, section(root), tmp_path, backbone, input_size=64)
    assert len(data) == count
    first = data[0]
    assert first["inputs"].shape == (3, 64, 64)


@REAL
@pytest.mark.realdata
def test_imagenet_folders_load_through_mmpretrain(root):
    from mmengine.registry import DATASETS

    folder = root / "imagenet_160px_sample" / "val"
    with engine.quiet("mmpretrain"):
        data = DATASETS.build({
            "type": "mmpretrain.CustomDataset", "data_root": str(folder), "pipeline": [
                {"type": "mmengine.ReadPicture"},
                {"type": "mmpretrain.ResizeEdge", "scale": 72, "edge": "short", "backend": "pillow",
                 "interpolation": "bicubic"},
                {"type": "mmpretrain.CenterCrop", "crop_size": (64, 64)}, {"type": "mmpretrain.PackInputs"}]})
        data.full_init()
        assert len(data) == 60
        assert {data[i]["data_samples"].gt_label.item() for i in range(60)} == set(range(60))
        assert data[0]["inputs"].shape == (3, 64, 64)


@REAL
@pytest.mark.realdata
@pytest.mark.parametrize(
    ("layout", "folder", "part", "names"),
    [("lasot", "LaSOT", "testing_set.txt", {"bag-1", "bird-1"}), ("otb", "OTB", "", {"Crossing"}),
     ("got10k", "GOT-10k", "val", {"GOT-10k_Val_000001"})],
)
def test_videos_load_through_their_layouts(layout, folder, part, names, root):
    from downstream.tracking.videos import read_videos

    section = {"layout": layout, "root": str(root / "tracking" / folder), "part": part}
    (videos,) = read_videos({"test": [section]}, "test")
    assert {video.name for video in videos} == names
    assert all(len(video.frames) == len(video.boxes) for video in videos)
