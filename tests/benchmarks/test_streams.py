"""Pre-training pictures on demand, as suite ``paper`` has them, and the speed of reading them."""

import json
import os
import tarfile
from dataclasses import replace

import pytest
import torch

from benchmarks import suite as suites
from benchmarks.data import DataError, MissingPictures, load_pictures
from benchmarks.environment import keep_kernels
from benchmarks.verify import verify
from objectives.pictures.memory import Pictures
from objectives.pictures.stream import Stream


def streamed(root):
    section = {"root": str(root), "train": "train", "in_memory": False}
    return replace(suites.get("paper"), input_size=32, pictures=section)


def nothing(*_):
    pass


def test_suites_say_whether_their_pictures_stay_in_memory(data, tmp_path):
    root = data / "imagenet"
    stream = load_pictures(streamed(root), root, nothing, tmp_path)
    assert isinstance(stream, Stream)
    section = {"root": str(root), "train": "train"}
    memory = load_pictures(replace(streamed(root), pictures=section), root, nothing, tmp_path)
    assert isinstance(memory, Pictures)
    assert memory.classes == stream.classes == ("a", "b", "c", "d")
    assert torch.equal(memory.labels, stream.labels)
    index = torch.arange(12)
    difference = memory.squares(index, 32).int() - stream.squares(index, 32).int()
    assert difference.abs().float().mean() < 8  # area average here, bilinear there
    assert memory.fingerprint != stream.fingerprint


def test_what_is_missing_or_empty_is_said(tmp_path):
    with pytest.raises(MissingPictures, match="bench data verify"):
        load_pictures(streamed(tmp_path), tmp_path, nothing, tmp_path)
    (tmp_path / "train" / "a").mkdir(parents=True)
    with pytest.raises(DataError, match="no picture in the folders"):
        load_pictures(streamed(tmp_path), tmp_path, nothing, tmp_path)


def test_shards_in_place_of_folders_are_found(data, tmp_path):
    (tmp_path / "imagenet").mkdir()
    with tarfile.open(tmp_path / "imagenet" / "train-000.tar", "w") as tar:
        tar.add(data / "imagenet" / "train", arcname="")
    suite = suites.get("paper")
    found = {f.name: f for f in verify(suite, tmp_path)}["pre-training"]
    assert found.complete
    assert found.files == 1
    stream = load_pictures(suite, tmp_path, nothing, tmp_path / "cache")
    assert len(stream) == 12
    assert stream.classes == ("a", "b", "c", "d")


def test_a_backbone_is_trained_from_disk(data, tmp_path, tiny):
    from benchmarks.execute import Execution
    from benchmarks.plan import Request, plan

    (tmp_path / "imagenet").symlink_to(data / "imagenet")
    options = ["suite.input_size=32", "suite.kwargs.patch_size=8", *tiny()]
    (cell,) = plan(Request(["mae"], ["classification"], "paper", options=options))
    execution = Execution(tmp_path / "runs", tmp_path, device="cpu", fast=True)
    folder = execution.pretrain(cell.pretraining)
    about = json.loads((folder / "backbone.json").read_text())
    assert about["images_seen"] == 16
    assert about["arithmetic"]["fused"]
    (row,) = [json.loads(line) for line in (folder / "reading.jsonl").read_text().splitlines()[-1:]]
    assert row["step"] == 2
    assert execution.backbone(cell.pretraining) == folder


def test_speed_of_reading(data, call, tmp_path, monkeypatch):
    kept = tmp_path / "record.json"
    code, out, _ = call("speed", "--data", data / "imagenet" / "train", "--batch", 4, "--workers", 0, "--steps", 1,
                        "--turns", 2, "--device", "cpu", "--output", kept)
    assert code == 0
    record = json.loads(kept.read_text())
    assert [row["name"] for row in record["rows"]][1] == "this loader"
    assert record["rows"][0]["ratio"] == 1.0
    assert all(row["images_per_second"] > 0 for row in record["rows"])
    assert "12 pictures" in out
    code, _, err = call("speed", "--data", tmp_path)
    assert code == 2
    assert "neither class folders" in err
    code, _, err = call("speed")
    assert code == 2
    assert "name objectives by --objective" in err


def test_both_loaders_give_the_same_crops(data, tmp_path):
    from benchmarks.speed_data import ours, torchvisions
    from objectives.pictures.folder import FolderStore
    from objectives.pictures.loader import Reading
    from objectives.recipe import Crop

    store = FolderStore(data / "imagenet" / "train")
    reading, device = Reading(12, 32, Crop(), 3, 0, None), torch.device("cpu")
    a, b = (next(make(store, reading, device)) for make in (torchvisions, ours))
    assert a.shape == b.shape == (12, 3, 32, 32)
    either = torch.minimum((a - b).abs().mean((1, 2, 3)), (a - b.flip(-1)).abs().mean((1, 2, 3)))  # flips are drawn
    assert either.max() < 0.02


def test_kernels_are_kept_where_the_user_wants_them(monkeypatch, tmp_path):
    monkeypatch.setenv("TRITON_CACHE_DIR", "/mine")
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    keep_kernels(tmp_path)
    assert os.environ["TRITON_CACHE_DIR"] == "/mine"
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path / "kernels" / "inductor")
