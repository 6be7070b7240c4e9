"""Streamed pictures: the same whatever they lie in, whoever reads them, wherever a training stopped."""

import io
import json
import os
import signal
import sys
import tarfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torchvision.transforms import RandomResizedCrop, v2

from objectives.objective import Objective
from objectives.pictures import decoded
from objectives.pictures.augment import finish
from objectives.pictures.crop import Box, central, draw, shrunk
from objectives.pictures.decode import decode, factor
from objectives.pictures.finding import layout, open_store
from objectives.pictures.folder import FolderStore
from objectives.pictures.loader import Order, Reading, chosen, loader
from objectives.pictures.parquet import ParquetStore
from objectives.pictures.shards import ShardStore
from objectives.pictures.source import PictureError
from objectives.pictures.stream import Stream, cut
from objectives.pretrain import build, pretrain
from objectives.recipe import Crop
from objectives.waiting import Waiting

CROP = Crop()


def encoded(number, ending):
    """A smooth picture of its own size, as a file's bytes."""
    rng = np.random.default_rng(number)
    small = Image.fromarray(rng.integers(0, 256, (5, 6, 3), dtype=np.uint8))
    picture = small.resize((70 + 3 * number, 90 - 2 * number), Image.Resampling.BICUBIC)
    out = io.BytesIO()
    picture.save(out, "PNG" if ending == "png" else "JPEG", quality=92)
    return out.getvalue()


FILES = [(f"{'abc'[i % 3]}/{i:03d}.{'png' if i % 5 == 4 else 'jpg'}", i % 3) for i in range(24)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """24 pictures of three classes in class folders: root, with the part ``train``."""
    root = tmp_path_factory.mktemp("pictures")
    for number, (name, _) in enumerate(FILES):
        path = root / "train" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(number, name[-3:]))
    return root


def by_content(store):
    """Label's name of each picture, by its bytes: what a store holds, in whatever order."""
    return {bytes(store.read(i)): store.classes[label] for i, label in enumerate(store.labels.tolist())}


def write_shards(root, folder, labelled="cls"):
    root.mkdir()
    for shard in range(3):
        with tarfile.open(root / f"train-{shard:02d}.tar", "w") as tar:
            for name, label in FILES[8 * shard : 8 * shard + 8]:
                stem, ending = name.split("/")[1].split(".") if labelled else name.split(".")
                parts = {ending: (folder / "train" / name).read_bytes()}
                if labelled in ("cls", "cls and metadata"):
                    parts["cls"] = str(label).encode()
                if labelled == "cls and metadata":
                    parts["json"] = b'{"width": 5, "label": null}'
                if labelled == "json":
                    parts["json"] = json.dumps({"label": label}).encode()
                for suffix, data in parts.items():
                    info = tarfile.TarInfo(f"{stem}.{suffix}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
    return root


@pytest.mark.parametrize("labelled", ["cls", "json", "cls and metadata", ""])
def test_shards_hold_what_folders_hold(labelled, folder, tmp_path):
    root = write_shards(tmp_path / "shards", folder, labelled)
    assert layout(root, "train")[0] == "shards"
    store = open_store(root, "train", tmp_path / "cache", "f" * 64)
    of_folder = by_content(FolderStore(folder / "train"))
    names = {"abc"[int(k)] if k.isdecimal() else k: k for k in store.classes}
    assert by_content(store) == {data: names[name] for data, name in of_folder.items()}
    assert store.blocks == [8, 8, 8]
    again = ShardStore(sorted(root.glob("*.tar")), tmp_path / "cache", "f" * 64)  # from its index
    assert by_content(again) == by_content(store)


def test_webdatasets_own_shards_are_read(folder, tmp_path):
    webdataset = pytest.importorskip("webdataset")
    with webdataset.TarWriter(str(tmp_path / "train-0.tar")) as sink:
        for number, (name, label) in enumerate(FILES):
            data = (folder / "train" / name).read_bytes()
            sink.write({"__key__": f"{number:05d}", name[-3:]: data, "cls": label})
    store = ShardStore([tmp_path / "train-0.tar"])
    assert store.labels.tolist() == [label for _, label in FILES]
    assert bytes(store.read(3)) == (folder / "train" / FILES[3][0]).read_bytes()


def test_parquet_holds_what_folders_hold(folder, tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = [{"bytes": (folder / "train" / name).read_bytes(), "path": name} for name, _ in FILES]
    about = {"info": {"features": {"label": {"names": ["a", "b", "c"], "_type": "ClassLabel"}}}}
    (tmp_path / "data").mkdir()
    for part in range(2):
        own = slice(12 * part, 12 * part + 12)
        table = pyarrow.table({"image": rows[own], "label": [label for _, label in FILES[own]]})
        table = table.replace_schema_metadata({"huggingface": json.dumps(about)})
        parquet.write_table(table, tmp_path / "data" / f"train-0000{part}-of-00002.parquet", row_group_size=5)
    store = open_store(tmp_path, "train", tmp_path / "cache", "p" * 64)
    assert isinstance(store, ParquetStore)
    assert store.classes == ("a", "b", "c")
    assert by_content(store) == by_content(FolderStore(folder / "train"))
    assert bytes(open_store(tmp_path, "train", tmp_path / "cache", "p" * 64).read(7)) == rows[7]["bytes"]


def test_a_missing_package_is_one_line(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(PictureError, match=r"need the package pyarrow: pip install") as error:
        ParquetStore([tmp_path / "train.parquet"], tmp_path, "k")
    assert "\n" not in str(error.value)


def test_bad_shards_are_named(tmp_path):
    path = tmp_path / "train-0.tar"
    path.write_bytes(b"no tar" * 200)
    with pytest.raises(PictureError, match="cannot be read as an uncompressed tar shard"):
        ShardStore([path])
    with tarfile.open(path, "w") as tar:
        info = tarfile.TarInfo("0001.jpg")
        info.size = 3
        tar.addfile(info, io.BytesIO(b"abc"))
    with pytest.raises(PictureError, match=r"0001 has no label; put 0001\.cls"):
        ShardStore([path])


# --- crops ------------------------------------------------------------------------------------------------------------


def test_crops_are_torchvisions_in_distribution():
    ours = np.array([draw(500, 375, CROP, 0, 0, i) for i in range(4000)], dtype=float)
    torch.manual_seed(0)
    picture = torch.empty(3, 375, 500)
    theirs = np.array([RandomResizedCrop.get_params(picture, CROP.scale, CROP.ratio) for _ in range(4000)], dtype=float)
    theirs = theirs[:, [1, 0, 3, 2]]  # left, top, width, height
    for column in range(4):
        spread = theirs[:, column].std()
        assert abs(ours[:, column].mean() - theirs[:, column].mean()) < 0.1 * spread
        assert ours[:, column].std() == pytest.approx(spread, rel=0.06)
    assert (ours[:, 0] + ours[:, 2]).max() <= 500
    assert (ours[:, 1] + ours[:, 3]).max() <= 375
    assert ours[:, :2].min() == 0


def test_a_picture_too_narrow_for_any_crop_gives_its_middle():
    assert draw(1000, 10, CROP, 0, 0, 0) == Box(493, 0, 13, 10)
    assert draw(10, 1000, CROP, 0, 0, 0) == Box(0, 493, 10, 13)
    assert central(70, 90) == Box(0, 10, 70, 70)


def test_a_crop_depends_on_seed_epoch_and_picture_alone():
    boxes = {draw(300, 200, CROP, seed, epoch, i) for seed in (0, 1) for epoch in (0, 1) for i in range(5)}
    assert len(boxes) == 20
    assert draw(300, 200, CROP, 1, 1, 3) in boxes


def test_pixels_are_torchvisions():
    data = encoded(3, "jpg")
    pixels, size = decode(data, 48, CROP, "x")
    assert size == (79, 84)
    whole = torch.from_numpy(np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).copy()).permute(2, 0, 1)
    assert (torch.from_numpy(pixels).permute(2, 0, 1).int() - whole.int()).abs().max() <= 2  # two builds of one codec
    box = Box(5, 11, 61, 55)
    theirs = v2.functional.resized_crop(
        torch.from_numpy(pixels.copy()).permute(2, 0, 1), box.top, box.left, box.height, box.width, [32, 32]
    )
    assert np.array_equal(cut(pixels, box, 32), theirs.permute(1, 2, 0).numpy())


def test_large_pictures_are_decoded_smaller():
    assert factor(500, 375, 224, CROP) == 1  # ImageNet's own size: the smallest crop has 167 px already
    assert factor(2000, 1500, 224, CROP) == 2
    assert factor(4000, 3000, 64, None) == 8
    buffer = io.BytesIO()
    big = Image.fromarray(np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize((403, 301))
    big.save(buffer, "JPEG", quality=95)
    pixels, size = decode(buffer.getvalue(), 48, CROP, "x")
    assert size == (403, 301)
    assert pixels.shape == (151, 202, 3)
    box = shrunk(Box(100, 50, 200, 150), *size, 202, 151)
    assert box == Box(50, 25, 100, 75)
    full = cut(np.asarray(big.convert("RGB")), Box(100, 50, 200, 150), 48).astype(int)
    assert np.abs(cut(pixels, box, 48) - full).mean() < 2


@pytest.mark.parametrize("harm", ["cut", "empty", "text"])
def test_a_damaged_picture_is_named(harm):
    data = encoded(0, "jpg")
    with pytest.raises(PictureError, match=r"^a/b\.jpg cannot be read as a picture"):
        decode({"cut": data[: len(data) // 2], "empty": b"", "text": b"hello" * 50}[harm], 32, CROP, "a/b.jpg")


# --- batches ----------------------------------------------------------------------------------------------------------


def stream(folder, threads=1):
    return Stream(FolderStore(folder / "train"), "fingerprint", threads)


def first(source, workers, count=4, skip=0, batch=7):
    reading = Reading(batch, 32, CROP, 5, workers, 2 if workers else None)
    batches = loader(source, reading, "cpu")
    batches.sampler.skip(skip)
    iterator = iter(batches)
    return [next(iterator) for _ in range(count)]


def same(a, b):
    return all(torch.equal(x[key], y[key]) for x, y in zip(a, b, strict=True) for key in x)


def test_batches_do_not_depend_on_who_reads(folder):
    alone = first(stream(folder), 0)
    assert alone[0]["images"].shape == (7, 3, 32, 32)
    assert alone[0]["images"].dtype == torch.uint8
    for workers in (1, 3):
        assert same(alone, first(stream(folder), workers))
    assert same(alone, first(stream(folder, threads=3), 0))
    assert same(alone[2:], first(stream(folder), 1, count=2, skip=14))


def test_an_epoch_holds_every_picture_once_and_the_next_is_another(folder):
    batches = first(stream(folder), 0, count=6, batch=8)
    epochs = [torch.cat([b["index"] for b in batches[k : k + 3]]) for k in (0, 3)]
    assert all(epoch.sort().values.tolist() == list(range(24)) for epoch in epochs)
    assert not torch.equal(*epochs)
    where = [{int(i): b["images"][k] for b in batches[s : s + 3] for k, i in enumerate(b["index"])} for s in (0, 3)]
    assert not torch.equal(where[0][0], where[1][0])  # another crop of the same picture


def test_the_order_of_shards_is_mixed_in_windows_and_shared_out(monkeypatch):
    monkeypatch.setattr("objectives.pictures.loader.WINDOW", 20)
    order = Order([8] * 10, seed=1)
    epoch = order.epoch(0)
    assert epoch.sort().values.tolist() == list(range(80))
    assert {len(set((epoch[k : k + 24] // 8).tolist())) for k in (0, 24, 48)} == {3}  # three whole shards a window
    shares = []
    for rank in range(3):
        share = Order([8] * 10, seed=1)
        share.rank, share.world = rank, 3
        iterator = iter(share)
        shares.append([next(iterator) for _ in range(40)])
    iterator = iter(order)
    assert [pair for pairs in zip(*shares, strict=True) for pair in pairs] == [next(iterator) for _ in range(120)]


def test_a_damaged_picture_in_a_worker_is_one_line(folder, tmp_path):
    (tmp_path / "train" / "a").mkdir(parents=True)
    (tmp_path / "train" / "a" / "0.jpg").write_bytes(b"nothing")
    with pytest.raises(PictureError, match=r"0\.jpg cannot be read as a picture") as error:
        first(stream(tmp_path), 1, batch=1)
    assert "\n" not in str(error.value)


def test_workers_leave_no_core_twice():
    for cores in (1, 2, 8, 64):
        reading = chosen(512, 224, CROP, 0, "cuda", cores, 64 * 2**30)
        assert reading.workers + 1 <= max(cores, 1)
        assert chosen(512, 224, CROP, 0, "cpu", cores, 2**36).workers == 0
    assert chosen(4096, 224, CROP, 0, "cuda", 8, 8 * 2**30).prefetch == 1
    assert chosen(32, 64, CROP, 0, "cuda", 8, 8 * 2**30, in_memory=True).workers == 0


def test_decoded_once_gives_the_same_pixels(folder, tmp_path):
    plain, kept = stream(folder), stream(folder, threads=2)
    arguments = (list(range(24)), [3] * 24, 32, CROP, 9)
    kept.keep_decoded(32, CROP, 24, tmp_path, 2**40, lambda *_: None)
    assert not kept.decoded  # one pass does not pay
    kept.keep_decoded(32, CROP, 72, tmp_path, 1000, lambda *_: None)
    assert not kept.decoded
    assert "room for the decoded set" in kept.undecoded
    kept.keep_decoded(32, CROP, 72, tmp_path, 2**40, lambda *_: None)
    assert kept.decoded
    fuller = stream(folder)
    fuller.keep_decoded(32, CROP, 72, tmp_path, 1000, lambda *_: None)
    assert fuller.decoded  # it is there, and needs no more room
    kept.store.read = None  # no file is opened any more
    assert torch.equal(plain.crops(*arguments), kept.crops(*arguments))
    key = decoded.key("fingerprint", 32, CROP)
    with ThreadPoolExecutor(2) as pool:  # two that ask at once
        made = list(pool.map(lambda _: decoded.make(plain.store, 32, CROP, tmp_path / "x", key, 1, print), range(2)))
    assert np.array_equal(made[0].pixels, made[1].pixels)


# --- training ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "fixed"), [("mae", False), ("supervised", True), ("moco_v3", False)])
def test_a_stream_trains_and_resumes_bit_equal(name, fixed, folder, make_job, monkeypatch):
    def job(where):
        return make_job(name, folder=where, images_seen=96, batch_size=8, fixed_crop=fixed, cache=None)

    whole = pretrain(job("whole"), stream(folder))
    after = Objective.after_step

    def stop(self, step):
        after(self, step)
        if step == 5:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(Objective, "after_step", stop)
        with pytest.raises(KeyboardInterrupt):
            pretrain(job("halves"), stream(folder))
    halves = pretrain(job("halves"), stream(folder))
    a, b = (load_file(path / "backbone.safetensors") for path in (whole, halves))
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert (whole / "log.jsonl").read_text() == (halves / "log.jsonl").read_text()
    rows = [json.loads(line) for line in (whole / "reading.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [3, 6, 9, 12]
    assert all(0 <= row["waited"] <= 1 and row["images_per_second"] > 0 for row in rows)
    assert json.loads((whole / "backbone.json").read_text())["data_fingerprint"] == "fingerprint"


def test_advice_names_what_to_change(folder, tmp_path):
    source = stream(folder)
    reading = chosen(8, 32, CROP, 0, "cuda", 4, 2**33)
    waiting = Waiting(source, reading, "cpu", tmp_path)
    assert waiting.advice(0.01) is None
    source.undecoded = "room for the decoded set"
    assert "more cores (now 3 read)" in waiting.advice(0.4)
    assert "room for the decoded set" in waiting.advice(0.4)


def test_the_last_steps_are_those_of_pictures_in_memory(make_job, pictures):
    objective = build(make_job("mae"), pictures)
    flip = torch.tensor([True, False] * 8)
    bytes_ = pictures.images[:16].permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)  # as a stream's lie
    wanted = (pictures.images[:16].float() / 255 - objective.mean) / objective.std
    wanted[flip] = wanted[flip].flip(-1)
    torch.testing.assert_close(finish(bytes_, flip, objective.mean, objective.std), wanted)
