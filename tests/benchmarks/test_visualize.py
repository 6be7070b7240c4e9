"""Sheets of objectives at work: which can be drawn, what ids look like, how many sheets stand in one file."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import data_sheet, scenes
from benchmarks import suite as suites
from benchmarks.errors import RequestError
from benchmarks.progress import Kept
from benchmarks.visualize import TRAINED, WIDEST, _colours, _columns, _trained_on, shelved, shown
from downstream.task import MissingData
from objectives import recipe as recipes
from objectives.objective import Objective
from objectives.recipe import Crop

VIT = ("vit_tiny_patch16_224", {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2})


def trained(runs, *names):
    for name in names:
        folder = runs / "embedded" / name / "seed0" / "pretrain"
        folder.mkdir(parents=True)
        (folder / TRAINED).touch()


def asked(runs, *names, budget="default"):
    reporter = Kept()
    found = shown(names, suites.get("embedded"), Path(runs), 0, budget, reporter)
    return [p.recipe.name for p in found], "\n".join(reporter.lines)


def test_all_is_what_is_trained_and_has_pictures(tmp_path):
    trained(tmp_path, "mae", "beit", "supervised", "random_init")
    found, said = asked(tmp_path, "all")
    assert found == ["beit", "mae"]
    assert "in the picture's places: random_init, supervised" in said
    assert "simmim" in said.splitlines()[1]
    assert asked(tmp_path, "mae", "supervised", "mae")[0] == ["mae"]


@pytest.mark.parametrize(("names", "budget", "line"), [
    (["all"], "default", "no trained objective"), (["mae", "simmim"], "default", "no trained simmim"),
    (["supervised"], "default", "supervised: nothing is predicted"), (["mae"], "lon", "did you mean 'long'"),
])
def test_what_cannot_be_drawn_is_refused_in_a_line(tmp_path, names, budget, line):
    if names != ["all"]:
        trained(tmp_path, "mae", "supervised")
    with pytest.raises(RequestError, match=line) as caught:
        asked(tmp_path, *names, budget=budget)
    assert "\n" not in str(caught.value)


def test_names_are_checked_before_the_scenes_are_rendered(call, tmp_path):
    for names, line in (("mae,mea", "did you mean 'mae'"), ("mae", "no trained mae")):
        code, _, err = call("visualize", "--objective", names, "--runs", tmp_path)
        assert code == 2
        assert line in err
        assert not (tmp_path / "cache").exists()


def at_work(name, **teacher):
    """(objective, what it makes of two pictures of noise)."""
    torch.manual_seed(0)
    slots = recipes.get(name).slots()
    slots["teacher"] |= teacher
    objective = Objective(slots, *VIT, 32, Crop(), True).eval()
    objective.teacher.rehearse()
    objective.begin_step(0, 0)
    images = torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8)
    with torch.no_grad():
        return objective, objective(images, torch.zeros(2).long(), torch.arange(2), mode="tensor")


@pytest.mark.parametrize(("name", "kind"), [("beit", "decoded"), ("beitv2", "codes")])
def test_ids_are_shown_as_pictures_or_colours(name, kind):
    objective, parts = at_work(name, codes=64, steps=1)
    with torch.no_grad():
        columns = _columns(objective, parts)
        right = {**parts, "prediction": torch.nn.functional.one_hot(parts["target"], 64).float()}
        same = _columns(objective, right)
    assert list(columns)[:4] == ["original", "student sees", f"target ({kind})", f"prediction ({kind})"]
    assert all(c.shape == (2, 3, 32, 32) for c in columns.values())
    target = columns[f"target ({kind})"]
    assert not torch.equal(target, columns[f"prediction ({kind})"])
    assert torch.equal(target, same[f"prediction ({kind})"])
    assert target.flatten(2).std(2).min() > 0
    if kind == "decoded":
        hidden = parts["mask"].view(2, 1, 4, 4).repeat_interleave(8, 2).repeat_interleave(8, 3).expand_as(target)
        assert torch.equal(same["completed"][hidden], target[hidden])
        assert torch.equal(same["completed"][~hidden], columns["original"][~hidden])


@pytest.mark.parametrize(("written", "device"), [
    ({"environment": {"hardware": {"device": "cuda:0"}}}, "cuda:0"), ({"environment": None}, "cpu"), (None, "cpu"),
])
def test_the_device_of_a_backbone(tmp_path, written, device):
    if written is not None:
        (tmp_path / "backbone.json").write_text(json.dumps(written))
    assert _trained_on(tmp_path) == device


def test_where_the_loss_takes_any_length_only_directions_are_shown():
    objective, parts = at_work("mvp")
    doubled = {**parts, "prediction": 2 * parts["target"]}
    columns = _columns(objective, doubled)
    assert torch.allclose(columns["prediction (PCA)"], columns["target (PCA)"], atol=1e-4)


def test_codes_have_different_colours_with_and_without_a_codebook():
    class Tokenizer:
        codes = 512

    for tokenizer in (Tokenizer(), type("WithBook", (Tokenizer,), {"codebook": torch.randn(512, 16)})()):
        colours = _colours(tokenizer)
        assert colours.shape == (512, 3)
        assert 0 <= colours.min() <= colours.max() <= 1
        assert len({tuple(c) for c in colours.tolist()}) == 512


def test_many_sheets_wrap_and_none_is_covered():
    sheets = [Image.new("RGB", (500 + 40 * (n % 3), 200 + 10 * (n % 2)), (n + 1, 0, 0)) for n in range(23)]
    joined = shelved(sheets)
    assert joined.width <= WIDEST
    assert joined.height <= 6 * 210
    counts = {colour[0]: count for count, colour in joined.getcolors() if colour[1] == 0}
    assert counts == {n + 1: s.width * s.height for n, s in enumerate(sheets)}
    assert shelved([Image.new("RGB", (3000, 10)), Image.new("RGB", (10, 10))]).size == (3000, 20)


# ----------------------------------------------------------------------------------------------- the data of a suite
@pytest.fixture(scope="module")
def scenes_root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "scenes"
    spec = scenes.SceneSpec(
        pictures_train=10, pictures_val=10, videos_train=1, videos_test=2, frames_train=2, frames_test=8, size=64
    )
    scenes.prepare(folder, spec)
    return folder


def headings(sheet_of, root, monkeypatch):
    said, blocks = [], []
    monkeypatch.setattr(data_sheet, "_page", lambda found: blocks.extend(found) or Image.new("RGB", (1, 1)))
    data_sheet.data_sheet(sheet_of, root, said.append)
    return {block.heading.split(":")[0]: block for block in blocks}, said


def test_a_sheet_shows_the_labels_of_every_task(scenes_root, monkeypatch):
    found, said = headings(suites.get("embedded"), scenes_root, monkeypatch)
    assert list(found) == ["classification", "segmentation", "pose", "depth", "tracking"]
    assert said == []
    pictures, labels = found["segmentation"].rows
    assert [panel.size for panel in pictures] == [panel.size for panel in labels]
    assert len(pictures) == data_sheet.COLUMNS
    assert len(found["tracking"].rows) == 2
    assert all(np.asarray(panel).std() > 5 for block in found.values() for row in block.rows for panel in row)


def test_the_sheet_of_a_suite_is_one_picture_of_all_its_blocks(scenes_root):
    page = data_sheet.data_sheet(suites.get("embedded"), scenes_root, print)
    panel = data_sheet.SIDE + data_sheet.GAP
    assert page.width == data_sheet.GAP + data_sheet.COLUMNS * panel
    assert page.height == data_sheet.GAP + 5 * data_sheet.HEAD + (1 + 2 + 1 + 2 + 2) * panel


def test_what_is_not_there_is_named_and_the_rest_is_drawn(scenes_root, tmp_path, monkeypatch):
    shutil.copytree(scenes_root / "nyu", tmp_path / "nyu")
    found, said = headings(suites.get("embedded"), tmp_path, monkeypatch)
    assert list(found) == ["depth"]
    assert len(said) == 4
    assert all(line.startswith("left out: ") and str(tmp_path) in line for line in said)
    with pytest.raises(MissingData, match="nothing of its data"):
        data_sheet.data_sheet(suites.get("embedded"), tmp_path / "none", said.append)


def test_regions_are_coloured_by_class_and_what_is_not_scored_is_black():
    labels = np.array([[0, 1], [255, 1]], np.uint8)
    panel = np.asarray(data_sheet._regions_of(labels, ["sky", "road"]))
    edge = data_sheet.SIDE - 1
    assert tuple(panel[edge, 0]) == (0, 0, 0)
    assert len({tuple(panel[0, 0]), tuple(panel[0, edge]), (0, 0, 0)}) == 3
    assert tuple(panel[0, edge]) == tuple(panel[edge, edge])


def test_joints_lie_where_the_annotation_has_them():
    item = {
        "img": np.full((100, 100, 3), 128, np.uint8), "bbox": np.array([[20.0, 20, 80, 80]]),
        "keypoints": np.array([[[30.0, 40], [70, 40], [50, 60]]]), "keypoints_visible": np.array([[1.0, 1, 0]]),
        "raw_ann_info": {"keypoints": [30, 40, 2, 70, 40, 1, 0, 0, 0]},
    }
    about = {"keypoint_id2name": {0: "left_hip", 1: "right_hip", 2: "nose"}, "skeleton_links": [(0, 2)]}
    panel = np.asarray(data_sheet._skeleton(item, about, 1.25))
    left, scale = 12, data_sheet.SIDE / 76  # the padded box reaches from 12.5 to 87.5

    def at(x, y):
        return tuple(panel[round((y - left + 0.5) * scale), round((x - left + 0.5) * scale)])

    assert at(30, 40) == data_sheet.LEFT  # filled: seen
    assert at(70, 40) == (128, 128, 128)  # hollow: hidden
    assert at(50, 60) == (128, 128, 128)  # not labelled, so no bone either
    assert data_sheet.RIGHT in {tuple(pixel) for row in panel for pixel in row}


@pytest.mark.realdata
def test_sheet_of_real_pictures(call, tmp_path):
    path = tmp_path / "mini.png"
    code, out, err = call("visualize", "--suite", "mini", "--data-root", os.environ["BENCH_DATA"], "--output", path)
    assert (code, out.strip()) == (0, str(path)), err
    assert Image.open(path).width > 1000
