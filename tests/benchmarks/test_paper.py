"""Suite ``paper``: plans, recipes of the families, what is missing, and cells that are skipped for it."""

import importlib
import json
import shutil
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from benchmarks import suite as suites
from benchmarks.data import files_below, fingerprint
from benchmarks.errors import RequestError
from benchmarks.execute import Execution
from benchmarks.plan import Request, plan
from benchmarks.reproduce import cell_of
from benchmarks.suite import Override, absolute
from benchmarks.verify import verify
from downstream.task import TASKS, check
from leaderboard.records import InvalidRecord, read_record, read_records, same_result, write_record

OURS = {name: info for name, info in TASKS.items() if name != "pose_lsp"}  # suite mini's


def settings(objective, task, protocol, *options):
    (cell,) = plan(Request([objective], [task], "paper", [protocol], options=options))
    return cell.settings


def test_a_link_to_nothing_is_a_missing_picture(tmp_path):
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / name).write_bytes(b"x")
    whole = fingerprint({"root": str(tmp_path)})
    (tmp_path / "b.jpg").unlink()
    (tmp_path / "b.jpg").symlink_to(tmp_path / "nothing.jpg")
    assert list(files_below(tmp_path, tmp_path)) == [("a.jpg", 1)]
    assert fingerprint({"root": str(tmp_path)}) != whole


def test_every_task_and_protocol_is_planned():
    cells = plan(Request(["maskdistill"], ["all"], "paper", ["all"]))
    assert {cell.task.name for cell in cells} == set(OURS)
    assert {(cell.task.name, cell.protocol) for cell in cells} == {
        (task.name, protocol) for task in OURS.values() for protocol in task.protocols}
    assert {cell.protocol for cell in plan(Request(["mae"], ["all"], "paper"))} == {"finetune"}


def test_every_setting_is_one_that_the_task_knows():
    """A recipe with a misspelt name would fail on the GPU, after days of pre-training."""
    from downstream.engine import COMMON
    from downstream.tracking.run import Settings

    suite = suites.get("paper")
    own = {"tracking": {field.name for field in fields(Settings)}}
    for name, info in OURS.items():
        kind = name.split("_")[0]
        if kind not in own:
            own[kind] = {*COMMON, *importlib.import_module(info.module).DEFAULTS}
        for objective in ("mae", "simmim", "beit", "beitv2", "maskdistill", "random_init"):
            for protocol in suite.settings[name]:
                assert set(suite.settings_of(name, protocol, objective)) <= own[kind], (name, protocol)
        for override in suite.overrides:
            for values in override.settings.get(name, {}).values():
                assert set(values) <= own[kind], name


@pytest.mark.parametrize("name", ["embedded", "mini", "paper"])
def test_tasks_take_what_a_suite_sets(name):
    backbones = [[], *([f"suite.model={model}"] for model in ("vit_large_patch16_224", "swin_base_patch4_window7_224"))]
    for options in backbones if name == "paper" else backbones[:1]:
        for objective in ("mae", "simmim", "beitv2", "data2vec", "supervised"):
            for cell in plan(Request([objective], ["all"], name, ["all"], options=options)):
                check(cell.task.name, cell.protocol, dict(cell.settings))


def test_families_have_their_own_recipes():
    beit = settings("beit", "classification", "finetune")
    assert (beit["lr"], beit["layer_decay"], beit["batch_size"] * beit["accumulate"]) == (4e-3, 0.65, 1024)
    swin = "suite.model=swinv2_base_window12_192"
    simmim = settings("simmim", "classification", "finetune")
    assert (simmim["layer_decay"], simmim["min_lr"]) == (0.65, 2e-4)
    assert settings("simmim", "classification", "finetune", swin)["layer_decay"] == 0.75
    depth = settings("simmim", "depth_kitti", "finetune", swin)
    assert (depth["layer_decay"], depth["imagenet_norm"], depth["crop_size"]) == (0.9, False, (352, 352))
    assert settings("mae", "segmentation", "finetune")["slide_stride"] == (256, 256)
    assert settings("mae", "segmentation", "finetune", swin)["out_indices"] == "pyramid"


LARGE = "suite.model=vit_large_patch16_224"


@pytest.mark.parametrize(("objective", "model", "lr", "epochs", "warmup", "decay", "drop_path"), [
    ("mae", "vit_small_patch16_224", 2e-3, 100, 0.05, 0.65, 0.1),
    ("mae", "vit_base_patch16_224", 2e-3, 100, 0.05, 0.65, 0.1),
    ("mae", "vit_large_patch16_224", 4e-3, 50, 0.1, 0.75, 0.2),
    ("mae", "vit_huge_patch14_224", 4e-3, 50, 0.1, 0.75, 0.3),
    ("beit", "vit_large_patch16_224", 4e-3, 50, 0.1, 0.75, 0.2),
    ("beitv2", "vit_large_patch16_224", 5e-4, 50, 0.1, 0.8, 0.2),
    ("maskfeat", "vit_large_patch16_224", 4e-3, 50, 0.1, 0.75, 0.1),
    ("simmim", "swin_base_patch4_window7_224", 2.5e-3, 100, 0.2, 0.8, 0.1),
    ("beit", "swin_base_patch4_window7_224", 2.5e-3, 100, 0.2, 0.8, 0.1),
    ("simmim", "swin_large_patch4_window7_224", 2.5e-3, 100, 0.2, 0.7, 0.2),
    ("simmim_v2", "swinv2_base_window12_192", 2.5e-3, 100, 0.2, 0.75, 0.1),
])
def test_classification_follows_family_and_size(objective, model, lr, epochs, warmup, decay, drop_path):
    found = settings(objective, "classification", "finetune", f"suite.model={model}")
    assert [found[key] for key in ("lr", "epochs", "warmup", "layer_decay", "drop_path_rate")] == [
        lr, epochs, warmup, decay, drop_path]
    assert found.get("merging_layers", True) == model.startswith("vit")


def test_dense_tasks_follow_family_and_size():
    for task in ("segmentation", "segmentation_camvid"):
        found = settings("beitv2", task, "finetune", LARGE)
        assert (found["lr"], found["layer_decay"], found["drop_path_rate"], found["channels"]) == (4e-5, 0.9, 0.2, 1024)
    assert settings("mae", "pose", "finetune", LARGE)["layer_decay"] == 0.8
    swin = "suite.model=swinv2_large_window12_192"
    for task in ("segmentation", "segmentation_camvid", "pose", "pose_crowdpose", "depth", "depth_kitti"):
        found = settings("simmim", task, "finetune", swin)
        assert (found["layer_decay"], found["drop_path_rate"]) == (0.85, 0.5), task
        assert settings("simmim", task, "finetune", swin.replace("large", "base"))["layer_decay"] == 0.9, task
    for protocol in ("frozen", "finetune"):
        assert settings("mae", "tracking", protocol, swin)["out_index"] == 2
    # attention as wide as the features must divide among its heads
    assert 1024 % settings("mae", "classification", "attentive", LARGE)["attention_heads"] == 0


def test_recipes_follow_the_length_of_pre_training():
    def decay(objective, budget, *options):
        (cell,) = plan(Request([objective], ["classification"], "paper", ["finetune"], budget, options=options))
        return cell.settings["layer_decay"]

    assert decay("simmim", "100ep", "suite.model=swin_base_patch4_window7_224") == 0.9
    assert decay("simmim", "800ep", "suite.model=swin_base_patch4_window7_224") == 0.8
    assert (decay("beitv2", "default"), decay("beitv2", "1600ep")) == (0.65, 0.6)


def test_a_backbone_of_unknown_size_is_refused_and_its_width_tells_it():
    wee = "suite.model=vit_wee_patch16_reg1_gap_256"
    with pytest.raises(RequestError, match=r"suite\.kwargs\.embed_dim") as caught:
        settings("mae", "depth", "finetune", wee)
    assert "\n" not in str(caught.value)
    wide = settings("mae", "depth", "finetune", wee, "suite.kwargs.embed_dim=1024")
    assert wide == settings("mae", "depth", "finetune", LARGE)
    plan(Request(["mae"], ["depth"], "embedded", options=[wee]))  # one recipe for all


@pytest.mark.parametrize(("options", "size"), [
    (["suite.model=swinv2_base_window12_192"], 192),
    (["suite.model=swinv2_base_window12_192", "suite.input_size=256"], 256),
    (["suite.input_size=256", "suite.model=swinv2_base_window12_192"], 256),
    (["suite.model=vit_large_patch14_dinov2"], 224), (["suite.model=swin_base_patch4_window7_224"], 224),
])
def test_a_windowed_model_is_pre_trained_at_its_own_size(options, size):
    (cell,) = plan(Request(["simmim"], ["depth"], "paper", options=options))
    assert (cell.pretraining.suite.input_size, cell.pretraining.suite.kwargs["img_size"]) == (size, size)
    (cell,) = plan(Request(["simmim"], ["depth"], "embedded", options=["suite.model=swinv2_base_window12_192"]))
    assert cell.pretraining.suite.input_size == 64


def test_frozen_heads_are_grids_trained_in_one_pass():
    """Linear where the task allows; a learning rate and a layer for each head."""
    for task in ("classification", "segmentation", "segmentation_camvid", "pose", "pose_crowdpose", "depth",
                 "depth_kitti"):
        found = settings("mae", task, "frozen")
        assert found["layers"], task
        assert len(found["lr"]) > 1, task
        assert found.get("head", "linear") == ("classic" if task.startswith("pose") else "linear")
    assert settings("mae", "classification", "frozen")["pool"] == "token"


def test_fine_tuning_has_the_papers_necks():
    swin = "suite.model=swinv2_base_window12_192"
    assert settings("mae", "classification", "finetune")["neck"] == "layernorm"
    assert settings("simmim", "classification", "finetune", swin)["neck"] == "none"
    assert settings("mae", "pose", "finetune")["neck"] == "none"


def test_what_the_user_sets_wins_over_the_family():
    assert settings("beit", "classification", "finetune", "task.classification.lr=1e-4")["lr"] == 1e-4
    assert settings("beit", "segmentation", "finetune", "task.classification.lr=1e-4")["lr"] == 7e-4


def test_overrides_apply_by_objective_and_backbone():
    override = Override({}, ("mae",), ("swin_",))
    assert override.applies("mae", "swin_base_patch4_window7_224")
    assert not override.applies("beit", "swin_base_patch4_window7_224")
    assert not override.applies("mae", "vit_base_patch16_224")
    assert Override({}).applies("anything", "vit")
    large = Override({}, kinds=("vit-large",), budgets=("100ep",))
    assert large.applies("mae", "beit_base_patch16_224", {"embed_dim": 1024}, "100ep")  # as a file's shapes tell it
    assert not large.applies("mae", "vit_large_patch16_224", {}, "default")


def test_a_record_is_planned_from_its_own_settings_and_not_todays_family(tmp_path):
    source = Path(__file__).parents[2] / "leaderboard" / "records"
    record = read_record(sorted(source.glob("embedded/mae*/seed0/depth.frozen/result.json"))[0])
    record = replace(record, suite="paper", protocol="finetune",
                     config={**record.config, "settings": {"lr": 0.5, "slide_stride": 7}})
    assert cell_of(record).settings == {"lr": 0.5, "slide_stride": 7}


@pytest.mark.parametrize(
    ("tasks", "protocols", "message"),
    [(["pose"], ["knn"], "no protocol of task pose in suite embedded 'knn'"),
     (["tracking", "classification"], ["attentive"], "task tracking"),
     (["depth_kitti"], [], "has no data for task 'depth_kitti'"), (["all"], ["kn"], "did you mean 'knn'")],
)
def test_a_protocol_that_a_task_lacks_is_one_line(tasks, protocols, message):
    with pytest.raises(RequestError, match=message) as caught:
        plan(Request(["mae"], tasks, "embedded", protocols))
    assert "\n" not in str(caught.value)


def test_all_tasks_take_the_protocols_that_they_have():
    cells = plan(Request(["mae"], ["all"], "embedded", ["knn", "attentive"]))
    assert [(c.task.name, c.protocol) for c in cells] == [
        ("classification", "knn"), ("classification", "attentive"), ("segmentation", "knn"),
        ("segmentation", "attentive"), ("pose", "attentive"), ("depth", "attentive")]


# --- data verify ------------------------------------------------------------------------------------------------------


def test_verify_says_found_complete_and_what_is_missing(tmp_path):
    for part, count in (("train", 3), ("val", 2)):
        (tmp_path / "imagenet" / part / "n01").mkdir(parents=True)
        for i in range(count):
            (tmp_path / "imagenet" / part / "n01" / f"{i}.JPEG").write_bytes(b"")
    (tmp_path / "nyu_depth_v2" / "filenames/nyudepthv2").mkdir(parents=True)
    (tmp_path / "nyu_depth_v2/filenames/nyudepthv2/train_list.txt").write_text("a b 1\n" * 24_231)
    (tmp_path / "OTB" / "Crossing").mkdir(parents=True)
    (tmp_path / "OTB/Crossing/groundtruth_rect.txt").write_text("1,2,3,4\n")
    found = {f.name: f for f in verify(suites.get("paper"), tmp_path)}
    assert set(found) == {"pre-training", *suites.get("paper").data}
    assert not any(f.complete for f in found.values())
    assert all(f.source for f in found.values())
    assert not found["classification"].missing
    assert found["classification"].lacking == (
        f"{tmp_path}/imagenet/train: 3 of 1,281,167", f"{tmp_path}/imagenet/val: 2 of 50,000")
    assert found["depth"].missing == (f"{tmp_path}/nyu_depth_v2/filenames/nyudepthv2/test_list.txt",)
    assert found["depth"].lacking == (  # the list that is there is whole, its pictures are not
        f"{tmp_path}/nyu_depth_v2/filenames/nyudepthv2/train_list.txt: 48,462 of its 48,462 files are not there; "
        "the first is a",)
    assert f"{tmp_path}/LaSOT" in found["tracking"].missing
    assert any("Crossing/img" in line for line in found["tracking_otb"].lacking)
    assert any("1 of 100 videos" in line for line in found["tracking_otb"].lacking)
    assert str(tmp_path / "ADEChallengeData2016") in found["segmentation"].missing


def test_verify_sees_videos_without_annotations_and_lists_that_are_no_text(tmp_path):
    for part in range(4):
        (tmp_path / "TrackingNet" / f"TRAIN_{part}" / "frames").mkdir(parents=True)
    (tmp_path / "nyu_depth_v2" / "filenames/nyudepthv2").mkdir(parents=True)
    (tmp_path / "nyu_depth_v2/filenames/nyudepthv2/train_list.txt").write_bytes("café b 1\n".encode("latin-1"))
    found = {f.name: f for f in verify(suites.get("paper"), tmp_path)}
    assert sum("TrackingNet/TRAIN_" in line and "no videos listed" in line for line in found["tracking"].lacking) == 3
    assert any("1 more videos" in line or "TRAIN_3" in line for line in found["tracking"].lacking)
    assert any("1 of 24,231" in line for line in found["depth"].lacking)
    assert any("is not text" in line or "UTF-8" in line or "utf-8" in line for line in found["depth"].lacking)


NYU = {"sync/kitchen_0028b": ["rgb_00045.jpg", "sync_depth_00045.png"],
       "official_splits/test/bathroom": ["rgb_00045.jpg", "sync_depth_00045.png"]}


def write_nyu(root):
    """NYUv2 as the official loaders of BTS, GLPDepth and 2205.13543 read it: two folders, lists that name neither."""
    rng = np.random.default_rng(0)
    for folder, (picture, depth) in NYU.items():
        (root / "nyu_depth_v2" / folder).mkdir(parents=True)
        cv2.imwrite(str(root / "nyu_depth_v2" / folder / picture), rng.integers(0, 255, (48, 64, 3), dtype=np.uint8))
        cv2.imwrite(str(root / "nyu_depth_v2" / folder / depth), rng.integers(1000, 9000, (48, 64)).astype(np.uint16))
    lists = root / "nyu_depth_v2" / "filenames" / "nyudepthv2"
    lists.mkdir(parents=True)
    for part, folder in zip(("train", "test"), NYU, strict=True):
        scene = folder.rsplit("/")[-1]
        (lists / f"{part}_list.txt").write_text(f"/{scene}/rgb_00045.jpg /{scene}/sync_depth_00045.png 518.8579\n")


def test_nyu_is_found_where_the_official_loaders_look(tmp_path):
    from downstream.depth import DepthList
    from downstream.task import MissingData

    write_nyu(tmp_path)
    section = absolute(suites.get("paper").data["depth"], tmp_path)
    for key, folder in zip(("train_list", "test_list"), NYU, strict=True):
        (row,) = DepthList(data_root=section["root"], ann_file=section[key], data_prefix={}, pipeline=[])
        assert row["img_path"] == f"{tmp_path}/nyu_depth_v2/{folder}/rgb_00045.jpg"
        assert row["depth_map_path"] == f"{tmp_path}/nyu_depth_v2/{folder}/sync_depth_00045.png"
    small = replace(suites.get("paper"), data={"depth": suites.get("paper").data["depth"]},
                    expected={"depth": {"train_list": 1, "test_list": 1}})
    assert {f.name: f for f in verify(small, tmp_path)}["depth"].complete
    shutil.rmtree(tmp_path / "nyu_depth_v2/official_splits")  # a list alone is no data set
    found = {f.name: f for f in verify(small, tmp_path)}["depth"]
    assert found.lacking == (
        f"{tmp_path}/nyu_depth_v2/filenames/nyudepthv2/test_list.txt: 2 of its 2 files are not there; "
        "the first is /bathroom/rgb_00045.jpg",)
    with pytest.raises(MissingData, match=r"test_list\.txt line 1 names /bathroom/rgb_00045\.jpg"):
        len(DepthList(data_root=section["root"], ann_file=section["test_list"], data_prefix={}, pipeline=[]))


def test_verify_looks_for_the_pictures_that_annotations_name(tmp_path):
    section = suites.get("paper").data["pose_crowdpose"]
    (tmp_path / "crowdpose/images").mkdir(parents=True)
    (tmp_path / "crowdpose/annotations").mkdir()
    for key in ("train_annotations", "val_annotations"):
        (tmp_path / "crowdpose" / section[key]).write_text(json.dumps({"images": [{"file_name": f"{key}.jpg"}]}))
    (tmp_path / "crowdpose/images/train_annotations.jpg").write_bytes(b"")
    small = replace(suites.get("paper"), data={"pose_crowdpose": section}, expected={"pose_crowdpose": {"images": 1}})
    found = {f.name: f for f in verify(small, tmp_path)}["pose_crowdpose"]
    assert [line.rpartition(": ")[2] for line in found.lacking] == [
        "1 of its 1 files are not there; the first is val_annotations.jpg"]


def bench(*arguments, cwd):
    return subprocess.run(
        [sys.executable, "-m", "benchmarks.cli", *map(str, arguments)], capture_output=True, text=True, check=False,
        cwd=cwd, stdin=subprocess.DEVNULL, timeout=300,
    )


def test_the_plan_needs_no_data(tmp_path):
    done = bench("run", "--suite", "paper", "--objective", "maskdistill", "--tasks", "all", "--dry-run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "384,350,100 pictures" in done.stderr
    assert "depth_kitti.finetune" in done.stderr
    assert "10 cells" in done.stderr


def test_missing_sets_make_their_cells_skipped(tmp_path):
    """Nothing is there; then the pre-training pictures are, and no task's data."""
    (tmp_path / "data").mkdir()
    small = ["suite.model=vit_tiny_patch16_224", "suite.input_size=32", "suite.kwargs.embed_dim=32",
             "suite.kwargs.depth=1", "suite.kwargs.num_heads=2"]
    cells = plan(Request(["random_init"], ["all"], "paper", options=small))
    execution = Execution(tmp_path / "runs", tmp_path / "data", "cpu")
    records = execution.run(cells)
    assert {record.status for record in records} == {"skipped"}
    assert all("pre-training pictures: no folder" in record.reason for record in records)

    (tmp_path / "data/imagenet/train/n01").mkdir(parents=True)
    Image.new("RGB", (40, 40)).save(tmp_path / "data/imagenet/train/n01/0.JPEG")
    records = Execution(tmp_path / "runs", tmp_path / "data", "cpu").run(cells)
    assert {record.status for record in records} == {"skipped"}, [r.reason for r in records]
    assert all(str(tmp_path / "data") in record.reason for record in records)
    found, invalid = read_records([tmp_path / "runs"])
    assert len(found) == 10
    assert not invalid
    shutil.rmtree(tmp_path / "data")


def test_chosen_values_stand_in_the_record(tmp_path):
    source = Path(__file__).parents[2] / "leaderboard" / "records"
    record = read_record(sorted(source.glob("embedded/mae*/seed0/depth.frozen/result.json"))[0])
    path = write_record(tmp_path, replace(record, chosen={"lr": 0.05, "layer": -2}))
    again = read_record(path)
    assert again.chosen == {"lr": 0.05, "layer": -2}
    assert same_result(again, record)  # older records do not say what was chosen
    content = json.loads(path.read_text())
    content["chosen"]["lr"] = 0.1
    path.write_text(json.dumps(content))
    with pytest.raises(InvalidRecord, match="digest"):
        read_record(path)
