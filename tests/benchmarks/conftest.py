import shutil
import sys

import cv2
import numpy as np
import pytest

from benchmarks.cli import main

BACKBONE = [
    "suite.kwargs.depth=1", "suite.kwargs.embed_dim=32", "suite.kwargs.num_heads=2", "suite.batch_size=8",
    "suite.images_seen=16", "suite.decoder={'width': 32, 'depth': 1, 'heads': 2}",
]
HEADS = {
    **{task: ["epochs=1", "batch_size=4", "input_size=32"]
       for task in ("classification", "segmentation", "pose", "pose_lsp", "depth")},
    "tracking": ["epochs=1", "batch_size=4", "pairs_per_epoch=8", "template_size=16", "search_size=32", "width=16",
                 "heads=2"],
}


@pytest.fixture(scope="session")
def tiny():
    """``tiny("depth", …)``: options that make the backbone and these tasks a matter of a second."""
    return lambda *tasks: [*BACKBONE, *(f"task.{task}.{setting}" for task in tasks for setting in HEADS[task])]


@pytest.fixture(scope="session")
def mini(data, tmp_path_factory):
    """The tiny data as suite ``mini`` wants them, and four videos: the folder for ``--data-root``."""
    root = tmp_path_factory.mktemp("mini")
    shutil.copytree(data / "imagenet", root / "tiny_imagenet25")
    shutil.copytree(data / "ade", root / "camvid_ade_layout" / "CamVid11")
    poses = root / "lspet_pose"
    shutil.copytree(data / "coco" / "train", poses / "images")
    (poses / "annotations").mkdir()
    for part in ("train", "val"):
        shutil.copy(data / "coco" / "train.json", poses / "annotations" / f"person_keypoints_{part}.json")
    shutil.copytree(data / "nyu", root / "rgbd_nyu_layout")
    lists = root / "rgbd_nyu_layout" / "filenames" / "nyudepthv2"
    lists.mkdir(parents=True)
    for part, name in (("train", "train"), ("test", "val")):
        shutil.copy(data / "nyu" / f"{name}.txt", lists / f"{part}_list.txt")
    videos = root / "tracking" / "LaSOT"
    rng = np.random.default_rng(0)
    for number in range(1, 5):
        folder = videos / "cup" / f"cup-{number}"
        (folder / "img").mkdir(parents=True)
        for frame in range(4):
            picture = rng.integers(60, 100, (64, 64, 3), dtype=np.uint8)
            picture[20:34, 10 + 3 * frame : 22 + 3 * frame] = 220
            assert cv2.imwrite(str(folder / "img" / f"{frame + 1:08d}.jpg"), picture)
        (folder / "groundtruth.txt").write_text("".join(f"{11 + 3 * frame},21,12,14\n" for frame in range(4)))
    (videos / "training_set.txt").write_text("cup-1\ncup-2\n")
    (videos / "testing_set.txt").write_text("cup-3\ncup-4\n")
    return root


@pytest.fixture
def call(monkeypatch, capsys):
    """``call("run", "--objective", …)``: the command in this process -> (exit code, stdout, stderr)."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["bench", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main()
        out, err = capsys.readouterr()
        return stop.value.code, out, err

    return run
