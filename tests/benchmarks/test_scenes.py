"""The embedded scenes: geometry against values worked by hand, labels against each other, and the cache folder."""

from __future__ import annotations

import json
import multiprocessing
import os
import platform
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from benchmarks import scenes
from benchmarks.scenes import figure, layout, production, raycast, shapes, store, video, writers
from benchmarks.scenes.raycast import Camera, Parts, Scene

SPEC = scenes.SceneSpec(
    seed=3, pictures_train=22, pictures_val=12, videos_train=2, videos_test=1, frames_train=4, frames_test=6
)
GREY = np.array([[raycast.PLAIN, 1, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5]])
LEVEL = layout.look(0.0, 0.0, 0.0)


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("cache") / "scenes"
    scenes.prepare(folder, SPEC)
    return folder


def vectors(*triples) -> raycast.Vector:
    return tuple(np.array(triples, np.float32).T.copy())


def scene(parts: Parts, height: float = 0.0, focal: float = 100.0, pitch: float = 0.0) -> Scene:
    camera = Camera(focal, np.array([0.0, height, 0.0]), layout.look(pitch, 0.0, 0.0))
    return Scene(camera, parts, GREY, np.array([0.0, 1.0, 0.0]), np.full(3, 0.5), np.full(3, 0.5))


# -------------------------------------------------------------------------------------------------- geometry
@np.errstate(all="ignore")  # as render() does
def test_rays_hit_unit_solids_where_worked_by_hand():
    origin = vectors((0, 0, -5), (0, 0, -5), (0.6, 0, -5), (0, 5, 0))
    direction = vectors((0, 0, 1), (1, 0, 0), (0, 0, 1), (0, -2, 0))
    inf = np.inf
    one, zero = np.ones(4, np.float32), np.zeros(4, np.float32)
    np.testing.assert_allclose(raycast.ellipsoid(origin, direction), [4, inf, 4.2, 2], rtol=1e-5)
    np.testing.assert_allclose(raycast.box(origin, direction), [4, inf, 4, 2], rtol=1e-6)
    np.testing.assert_allclose(raycast.cylinder(origin, direction, one, zero), [4, inf, 4.2, 2], rtol=1e-5)
    # a cone from radius 1 at the foot to 0 at the top: half as wide in the middle
    np.testing.assert_allclose(
        raycast.cylinder(origin, direction, 0.5 * one, -0.5 * one), [4.5, inf, inf, 2], rtol=1e-5
    )
    # a capsule of half length 2 reaches up to 3
    np.testing.assert_allclose(raycast.capsule(origin, direction, 2 * one), [4, inf, 4.2, 1], rtol=1e-4)


@np.errstate(all="ignore")
def test_solids_behind_the_origin_are_not_hit():
    origin, direction, one = vectors((0, 0.2, 5)), vectors((0.1, 0, 1)), np.ones(1, np.float32)
    for distance in (
        raycast.ellipsoid(origin, direction), raycast.box(origin, direction),
        raycast.cylinder(origin, direction, one, 0 * one), raycast.capsule(origin, direction, one),
    ):
        assert distance.item() == np.inf


def test_depth_of_floor_and_wall_is_exact():
    wall = layout.plane((0, 0, 4.0), np.array([0.0, 0.0, -1.0]), layout.WALL, 0)
    floor = layout.plane((0, 0, 0), np.array([0.0, 1.0, 0.0]), layout.FLOOR, 0)
    out = raycast.render([scene(Parts.join([floor, wall]), height=1.5, focal=64.0)], 64)
    rows = np.arange(64) - 31.5
    expected = np.full(64, 4.0)
    below = rows > 0
    expected[below] = np.minimum(4.0, 1.5 * 64 / rows[below])
    np.testing.assert_allclose(out.depth[0], np.repeat(expected[:, None], 64, 1), rtol=1e-5)
    np.testing.assert_array_equal(out.label[0, :, 7], np.where(expected < 4, layout.FLOOR, layout.WALL))


def test_camera_projects_to_where_it_sees():
    rng = np.random.default_rng(0)
    camera = Camera(120.0, np.array([0.1, 1.4, 0.2]), layout.look(0.3, -0.1, 0.05))
    for at in rng.uniform((-0.5, 0.3, 2.5), (0.5, 1.2, 4.0), (5, 3)):
        ball = shapes.gather([shapes.ball(at, 0.05)], 1, raycast.MAIN)
        out = raycast.render([replace(scene(ball), camera=camera)], 128)
        column, row, depth = camera.project(at[None], 128)[0]
        box = writers.tight_box(out.silhouettes[0, 0])
        assert box is not None
        assert abs(box[0] + (box[2] - 1) / 2 - column) <= 0.6
        assert abs(box[1] + (box[3] - 1) / 2 - row) <= 0.6
        assert out.depth[0, round(row), round(column)] == pytest.approx(depth - 0.05, abs=0.01)


def test_pitch_looks_down_and_yaw_looks_right():
    camera = Camera(100.0, np.zeros(3), layout.look(0.2, 0.0, 0.0))
    assert camera.project(np.array([[0, -np.tan(0.2), 1.0]]), 128)[0, 1] == pytest.approx(63.5)
    camera = Camera(100.0, np.zeros(3), layout.look(0.0, 0.2, 0.0))
    assert camera.project(np.array([[np.tan(0.2), 0, 1.0]]), 128)[0, 0] == pytest.approx(63.5)
    assert Camera(100.0, np.zeros(3), LEVEL).project(np.array([[1.0, 1.0, 2.0]]), 128)[0].tolist() == [113.5, 13.5, 2.0]


def test_bounding_rectangles_lose_no_pixel(monkeypatch):
    stills = [layout.still(1, layout.TRAIN, index, 0, 64).scene for index in range(10)]
    tight = raycast.render(stills, 64)
    monkeypatch.setattr(
        raycast._Batch, "_rectangles",
        lambda self, corners, *_: np.tile(np.array([0, 0, self.size, self.size]), (len(corners), 1)),
    )
    whole = raycast.render(stills, 64)
    for name in ("picture", "label", "depth", "group", "silhouettes"):
        np.testing.assert_array_equal(getattr(tight, name), getattr(whole, name))


def test_shadow_falls_on_the_far_side_of_the_light():
    floor = layout.plane((0, 0, 0), np.array([0.0, 1.0, 0.0]), layout.FLOOR, 0)
    ball = shapes.gather([shapes.ball((0, 0.5, 4.0), 0.5)], 5, raycast.MAIN)
    slanted = replace(scene(Parts.join([floor, ball]), 2.0, 100.0, 0.4), light=np.array([-0.6, 0.8, 0.0]))
    picture = raycast.render([slanted], 128).picture[0].astype(int)

    def at(x: float) -> int:
        column, row, _ = slanted.camera.project(np.array([[x, 0.0, 4.0]]), 128)[0]
        return picture[round(row), round(column)].sum()

    assert at(0.6) < 0.7 * at(-0.7)


# ------------------------------------------------------------------------------------------------ determinism
def test_pictures_do_not_depend_on_batch_or_threads():
    drawn = [layout.still(0, layout.VAL, index, 0, 64).scene for index in range(5)]
    together = raycast.render(drawn, 64)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1 if before > 1 else 2)
        for index, one in enumerate(drawn):
            alone = raycast.render([one], 64)
            for name in ("picture", "label", "depth", "silhouettes"):
                np.testing.assert_array_equal(getattr(alone, name)[0], getattr(together, name)[index])
    finally:
        torch.set_num_threads(before)


def test_splits_and_seeds_differ():
    base = layout.still(0, layout.TRAIN, 4, 0, 64).scene.materials
    for other in ((0, layout.VAL, 4), (1, layout.TRAIN, 4), (0, layout.TRAIN, 14)):
        assert not np.array_equal(base, layout.still(*other, 0, 64).scene.materials)


def test_fingerprint_repeats_and_tells_seeds_apart(root, tmp_path, monkeypatch):
    monkeypatch.setattr(production, "PIXELS", 5 * SPEC.size**2)
    assert scenes.prepare(tmp_path / "again", SPEC) == scenes.fingerprint(root, SPEC)
    for path in sorted(root.rglob("*.*")):
        if path.is_file() and path.name != store.RECORD:
            assert path.read_bytes() == (tmp_path / "again" / path.relative_to(root)).read_bytes(), path
    tiny = replace(SPEC, pictures_train=1, pictures_val=1, videos_train=1, videos_test=1, frames_test=2)
    assert scenes.prepare(tmp_path / "a", tiny) != scenes.prepare(tmp_path / "b", replace(tiny, seed=4))


# ----------------------------------------------------------------------------------------------- what is drawn
def test_looks_do_not_tell_the_class():
    """Mean colour, texture and light of the main object are alike in all classes (analysis of variance)."""
    stills = [layout.still(0, layout.TRAIN, index, 0, 128) for index in range(600)]
    materials = np.stack([still.scene.materials for still in stills])
    facts = {
        **{f"colour {i}": materials[:, layout.OBJECT, 2 + i] for i in range(3)},
        "plain": materials[:, layout.OBJECT, 0] == raycast.PLAIN, "cells": materials[:, layout.OBJECT, 1],
        "wall": materials[:, 1, 2:5].mean(1), "floor": materials[:, 0, 2:5].mean(1),
        "light": np.array([still.scene.diffuse.mean() for still in stills]),
        "focal": np.array([still.scene.camera.focal for still in stills]),
        "camera height": np.array([still.scene.camera.position[1] for still in stills]),
        "figure": np.array([still.figure is not None for still in stills]),
    }
    classes = np.array([still.shape for still in stills])
    for name, values in facts.items():
        values = values.astype(float)
        groups = [values[classes == shape] for shape in range(10)]
        between = sum(len(group) * (group.mean() - values.mean()) ** 2 for group in groups) / 9
        within = sum(((group - group.mean()) ** 2).sum() for group in groups) / (len(values) - 10)
        assert between / within < 3.0, name  # F(9, 590) exceeds 3.0 once in 600
    assert 0.5 < facts["figure"].mean() < 0.7


def test_shapes_stand_on_the_floor():
    for name, make in shapes.SHAPES.items():
        for seed in range(5):
            corners = shapes.gather(make(np.random.default_rng(seed))).corners()
            assert abs(corners[..., 1].min()) < 0.02, name
            assert 0.5 < np.ptp(corners.reshape(-1, 3), 0).max() < 1.6, name


def test_rotations_are_proper():
    rng = np.random.default_rng(0)
    for direction in (*rng.normal(size=(20, 3)), (0.0, 1.0, 0.0), (0.0, -1.0, 0.0), (1.0, 0.0, 0.0)):
        unit = np.asarray(direction) / np.linalg.norm(direction)
        turn = shapes.along(unit)
        np.testing.assert_allclose(turn @ turn.T, np.eye(3), atol=1e-9)
        assert np.linalg.det(turn) == pytest.approx(1)
        np.testing.assert_allclose(turn[:, 1], unit)


def test_a_figure_that_faces_the_camera_has_its_left_on_the_right_of_the_picture():
    person = figure.build(np.random.default_rng(5), layout.PERSON)
    joints = person.joints @ shapes.turn_y(np.pi).T + (0, 0, 4.0)
    columns = Camera(100.0, np.array([0.0, 1.0, 0.0]), LEVEL).project(joints, 128)[:, 0]
    named = dict(zip(figure.JOINTS, columns, strict=True))
    assert all(named[f"left_{part}"] > named[f"right_{part}"] for part in ("eye", "ear", "shoulder", "hip"))
    depth = dict(zip(figure.JOINTS, joints[:, 2], strict=True))
    assert depth["nose"] < depth["left_ear"]


def test_videos_move_and_begin_whole():
    for index in range(3):
        clip = video.video(0, layout.VIDEO_TEST, index, 24, 128)
        out = raycast.render([clip.scenes[0], clip.scenes[-1]], 128)
        first, last = (writers.tight_box(mask) for mask in out.silhouettes[:, 0])
        assert first is not None
        assert last is not None
        assert first != last
        assert 8 <= max(first[2:]) <= 45
        seen, whole = (out.group[0] == raycast.MAIN).sum(), out.silhouettes[0, 0].sum()
        assert seen > 0.8 * whole


def test_what_looks_alike_can_be_told_apart():
    for index in range(8):
        rows = video.video(0, layout.VIDEO_TEST, index, 2, 128).scenes[0].materials
        target, textured, shaped = rows[3:5], rows[5:7], rows[7:9]
        assert (textured[:, 0] != target[:, 0]).all()  # another texture, ...
        np.testing.assert_array_equal(shaped[:, 0], target[:, 0])  # ... or the same on another shape
        for alike in (textured, shaped):
            np.testing.assert_allclose(alike[:, 2:], target[:, 2:], atol=0.061)
        assert set(rows[3:9, 0]) <= set(video.TEXTURES)


# ------------------------------------------------------------------------------------------------- the layouts
def test_all_layouts_hold_the_same_pictures(root):
    assert tuple(sorted(path.name for path in (root / "imagenet/train").iterdir())) == scenes.CLASSES
    for split, ade, count in (("train", "training", 22), ("val", "validation", 12)):
        pictures = sorted((root / "imagenet" / split).glob("*/*.JPEG"), key=lambda path: path.stem)
        assert [path.stem for path in pictures] == [f"{split}_{index:05d}" for index in range(count)]
        for index, path in enumerate(pictures):
            assert (root / f"ade/images/{ade}/{index:05d}.jpg").samefile(path)
            assert cv2.imread(str(path)).shape == (128, 128, 3)
            mask = cv2.imread(str(root / f"ade/annotations/{ade}/{index:05d}.png"), cv2.IMREAD_UNCHANGED)
            assert mask.dtype == np.uint8
            assert mask.shape == (128, 128)
            assert mask.max() <= 14
            # of the ten classes the mask holds the picture's alone
            found = set(np.unique(mask[mask >= layout.FIRST_CLASS]).tolist())
            assert found == {layout.FIRST_CLASS + scenes.CLASSES.index(path.parent.name)}
    lines = (root / "ade/objectInfo.txt").read_text().splitlines()
    assert lines[0] == "Idx\tName"
    assert lines[1:] == [f"{index}\t{name}" for index, name in enumerate(scenes.SEGMENTATION_CLASSES, 1)]


def test_depth_is_metric_and_lists_name_the_files(root):
    for split, base, count in (("train", "", 22), ("test", "official_splits/test", 12)):
        lines = (root / f"nyu/filenames/nyudepthv2/{split}_list.txt").read_text().splitlines()
        assert len(lines) == count
        for line in lines:
            picture, depth = (root / "nyu/nyu_depth_v2" / base / name.lstrip("/") for name in line.split(" "))
            assert picture.is_file()
            values = cv2.imread(str(depth), cv2.IMREAD_UNCHANGED)
            assert values.dtype == np.uint16
            index, ade = int(depth.stem[-5:]), "training" if split == "train" else "validation"
            mask = cv2.imread(str(root / f"ade/annotations/{ade}/{index:05d}.png"), cv2.IMREAD_UNCHANGED)
            np.testing.assert_array_equal(values == 0, mask == 0)
            assert values[values > 0].min() > 500
            assert values.max() <= 10000


def test_coco_reads_the_people(root):
    from pycocotools.coco import COCO

    for split, ade in (("train", "training"), ("val", "validation")):
        people = COCO(str(root / f"coco/annotations/person_keypoints_{split}2017.json"))
        assert people.anns
        assert people.cats[1]["keypoints"] == list(figure.JOINTS)
        for entry in people.anns.values():
            image = people.imgs[entry["image_id"]]
            assert (root / f"coco/{split}2017" / image["file_name"]).is_file()
            index = entry["image_id"] - writers.COCO_FIRST[split]
            mask = people.annToMask(entry)
            labels = cv2.imread(str(root / f"ade/annotations/{ade}/{index:05d}.png"), cv2.IMREAD_UNCHANGED)
            np.testing.assert_array_equal(mask == 1, labels == layout.PERSON)
            assert entry["area"] == mask.sum()
            x, y, w, h = entry["bbox"]
            assert 0 <= x < x + w <= 128
            assert 0 <= y < y + h <= 128
            seen = writers.tight_box(mask == 1)  # what is seen lies in the box of the whole figure
            assert seen is not None
            assert x <= seen[0]
            assert y <= seen[1]
            assert seen[0] + seen[2] <= x + w
            assert seen[1] + seen[3] <= y + h
            joints = np.array(entry["keypoints"]).reshape(17, 3)
            assert (joints[:, 2] > 0).sum() == entry["num_keypoints"] >= 8
            assert set(joints[:, 2]) <= {0, 1, 2}
            for column, row, flag in joints:
                if flag == 0:
                    assert column == row == 0
                if flag == 2:
                    assert mask[round(row), round(column)]
            assert (joints[:, 2] == 2).any()


def test_lasot_boxes_hold_the_target(root):
    training, testing = ((root / f"lasot/{name}_set.txt").read_text().split() for name in ("training", "testing"))
    assert (training, testing) == (["arch-1", "ball-1"], ["arch-2"])
    for name in training + testing:
        folder = root / "lasot" / name.rpartition("-")[0] / name
        boxes = np.loadtxt(folder / "groundtruth.txt", delimiter=",", ndmin=2)
        frames = sorted(path.name for path in (folder / "img").iterdir())
        assert frames == [f"{frame:08d}.jpg" for frame in range(1, len(boxes) + 1)]
        for flags in ("full_occlusion.txt", "out_of_view.txt"):
            assert len((folder / flags).read_text().split(",")) == len(boxes)
        assert (boxes[:, :2] >= 1).all()
        assert (boxes[:, 2:] >= 4).all()
        assert (boxes[:, :2] + boxes[:, 2:] - 1 <= 256).all()
        assert cv2.imread(str(folder / "img" / frames[0])).shape == (256, 256, 3)
    assert len(boxes) == 6


def test_run_lengths_start_with_zeros():
    mask = np.array([[1, 0], [1, 1]], bool)
    assert writers.run_lengths(mask)["counts"] == [0, 2, 1, 1]
    assert writers.tight_box(np.zeros((3, 3), bool)) is None


def test_the_scenes_are_those_of_the_committed_records(root):
    """Another hash is another data set: raise VERSION, and compute the committed records of `embedded` again."""
    assert store.recorded(root, SPEC) == "42e6a0cf79bd2a316cfe043913f0844d36cfffd07a3538f484f1a3b50752f8cd"


# -------------------------------------------------------------------------------------------- the cache folder
TINY = scenes.SceneSpec(
    pictures_train=1, pictures_val=1, videos_train=1, videos_test=1, frames_train=1, frames_test=1, size=64
)


def test_ready_scenes_are_not_rendered_again(root, monkeypatch):
    monkeypatch.setattr(production, "fill", None)
    found = scenes.prepare(root, SPEC)
    assert len(found) == 64
    assert json.loads((root / "scenes.json").read_text())["fingerprint"] == found
    assert scenes.fingerprint(root, replace(SPEC, seed=9)) is None


def test_other_spec_version_or_wreck_is_replaced(tmp_path, monkeypatch):
    folder = tmp_path / "scenes"
    folder.mkdir()
    (folder / "wreck").write_text("half")
    (folder / store.RECORD).write_text('{"spec": ')
    first = scenes.prepare(folder, TINY)
    assert not (folder / "wreck").exists()
    second = scenes.prepare(folder, replace(TINY, seed=1))
    assert second != first
    monkeypatch.setattr(store, "VERSION", scenes.VERSION + 1)
    (folder / "old").touch()
    scenes.prepare(folder, replace(TINY, seed=1))
    assert not (folder / "old").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["scenes"]


def test_a_folder_with_other_things_is_left_alone(tmp_path):
    (tmp_path / "imagenet").mkdir()
    (tmp_path / "imagenet" / "precious.jpg").touch()
    with pytest.raises(scenes.SceneError, match="something else"):
        scenes.prepare(tmp_path, TINY)
    assert (tmp_path / "imagenet" / "precious.jpg").exists()


@pytest.mark.parametrize("failure", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_failure_leaves_nothing_behind(tmp_path, monkeypatch, failure):
    calls = []

    def fails(path, picture):
        calls.append(path)
        if len(calls) == 2:
            raise failure

    monkeypatch.setattr(writers, "_png", fails)
    expected = scenes.SceneError if isinstance(failure, OSError) else KeyboardInterrupt
    with pytest.raises(expected) as caught:
        scenes.prepare(tmp_path / "scenes", TINY)
    assert list(tmp_path.iterdir()) == []
    if expected is scenes.SceneError:
        assert str(tmp_path / "scenes") in str(caught.value)
        assert "\n" not in str(caught.value)


def test_failure_keeps_what_was_there(tmp_path, monkeypatch):
    found = scenes.prepare(tmp_path / "scenes", TINY)

    def fails(path, picture):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writers, "_png", fails)
    with pytest.raises(scenes.SceneError):
        scenes.prepare(tmp_path / "scenes", replace(TINY, seed=1))
    assert scenes.fingerprint(tmp_path / "scenes", TINY) == found


def test_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(scenes.SceneError, match="file/scenes"):
        scenes.prepare(tmp_path / "file" / "scenes", TINY)


def test_the_slower_of_two_processes_keeps_the_faster_ones_copy(tmp_path, monkeypatch):
    folder = tmp_path / "scenes"
    original = production.fill

    def overtaken(partial, spec, progress):
        found = original(partial, spec, progress)
        monkeypatch.setattr(production, "fill", original)
        scenes.prepare(folder, spec)  # another process finishes first
        (folder / "theirs").touch()
        return found

    monkeypatch.setattr(production, "fill", overtaken)
    scenes.prepare(folder, TINY)
    assert (folder / "theirs").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["scenes"]


def test_folders_of_dead_processes_are_swept(tmp_path):
    child = multiprocessing.get_context("spawn").Process(target=int)
    child.start()
    child.join()
    for process in (child.pid, os.getpid()):
        left = tmp_path / f".scenes.{process}.12345678.partial"
        left.mkdir()
        os.utime(left, (0, 0))
    for machine in (platform.node(), "another"):  # of just now
        (tmp_path / f".scenes.{machine}.{child.pid}.12345678.partial").mkdir()
    scenes.prepare(tmp_path / "scenes", TINY)
    assert {path.name for path in tmp_path.iterdir()} == {
        f".scenes.{os.getpid()}.12345678.partial", f".scenes.another.{child.pid}.12345678.partial", "scenes"
    }


def test_threads_of_torch_are_left_as_they_were(tmp_path):
    before = torch.get_num_threads()
    stages = []
    scenes.prepare(tmp_path / "scenes", TINY, lambda stage, done, total: stages.append((stage, done, total)))
    assert torch.get_num_threads() == before
    assert ("val pictures", 1, 1) in stages


def test_processes_render_what_one_thread_does(tmp_path, monkeypatch):
    alone = scenes.prepare(tmp_path / "alone", TINY)
    monkeypatch.setattr(production, "FEW", 0)
    monkeypatch.setattr(production.torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(production.torch, "set_num_threads", lambda count: None)
    seen = []
    assert scenes.prepare(tmp_path / "together", TINY, lambda *told: seen.append(told)) == alone
    assert seen[-1][1:] == (TINY.videos_test, TINY.videos_test)


def test_a_killed_process_is_one_line(tmp_path, monkeypatch):
    class Killed(Future):
        def result(self, timeout=None):
            raise BrokenProcessPool("killed")

    monkeypatch.setattr(production, "as_completed", lambda work: [Killed()])
    with pytest.raises(scenes.SceneError, match="it was killed"):
        scenes.prepare(tmp_path / "scenes", TINY)
    assert not (tmp_path / "scenes").exists()
