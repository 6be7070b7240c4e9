import json
import multiprocessing
import os
import pickle

import cv2
import numpy as np
import pytest


def pytest_collection_modifyitems(items):
    """Tests of real pictures are skipped, with the reason, where no folder of them is named."""
    if "BENCH_DATA" not in os.environ:
        for item in items:
            if item.get_closest_marker("realdata"):
                item.add_marker(pytest.mark.skip(reason="BENCH_DATA names no folder of real pictures"))


def picture(rng, label):
    """A 48 x 48 picture whose quadrants tell the label, with noise."""
    out = rng.integers(0, 90, (48, 48, 3), dtype=np.uint8)
    out[24 * (label // 2) : 24 * (label // 2) + 24, 24 * (label % 2) : 24 * (label % 2) + 24, label % 3] += 150
    return out


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """12 training and 8 test pictures in the native layouts of four tasks: root folder."""
    root = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)

    def write(path, array):
        path.parent.mkdir(parents=True, exist_ok=True)
        assert cv2.imwrite(str(path), array)

    coco = {}
    for part, count, ade, split in (("train", 12, "training", "train"), ("val", 8, "validation", "val")):
        lines = []
        coco[part] = {"images": [], "annotations": [], "categories": [{
            "id": 1, "name": "person", "keypoints": [f"k{i}" for i in range(17)], "skeleton": []}]}
        for i in range(count):
            label = i % 4
            image = picture(rng, label)
            write(root / "imagenet" / split / "abcd"[label] / f"{i}.jpg", image)
            write(root / "ade" / "images" / ade / f"{i}.jpg", image)
            mask = np.zeros((48, 48), np.uint8)
            mask[:, :24], mask[:, 24:], mask[:4] = 1, 2 + label % 2, 0
            write(root / "ade" / "annotations" / ade / f"{i}.png", mask)
            write(root / "coco" / part / f"{i}.jpg", image)
            coco[part]["images"].append({"id": i + 1, "file_name": f"{i}.jpg", "width": 48, "height": 48})
            points = rng.uniform(8, 40, (17, 2))
            flat = [float(v) for x, y in points for v in (x, y, 2)]
            coco[part]["annotations"].append({
                "id": i + 1, "image_id": i + 1, "category_id": 1, "iscrowd": 0, "area": 900.0, "num_keypoints": 17,
                "bbox": [6.0, 6.0, 36.0, 36.0], "keypoints": flat})
            write(root / "nyu" / f"s/rgb_{part}_{i}.jpg", image)
            depth = np.linspace(1000, 3000, 48 * 48).reshape(48, 48).astype(np.uint16)
            depth[:, :5] = 0
            write(root / "nyu" / f"s/depth_{part}_{i}.png", depth)
            lines.append(f"/s/rgb_{part}_{i}.jpg /s/depth_{part}_{i}.png 518.8")
        (root / "nyu" / f"{part}.txt").write_text("\n".join(lines) + "\n")
        (root / "coco" / f"{part}.json").write_text(json.dumps(coco[part]))
    (root / "ade" / "objectInfo.txt").write_text("Idx\tName\n1\tone\n2\ttwo\n3\tthree\n")
    return root


@pytest.fixture
def in_processes(tmp_path):
    """``in_processes(N, work, …)``: ``work(…)`` in each of N processes of one group (gloo); their results in order."""
    import torch
    from torch import distributed

    fork = multiprocessing.get_context("fork")

    def one(rank, world, queue, work, arguments):
        torch.set_num_threads(1)
        distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=rank, world_size=world)
        try:
            result = work(*arguments)
        except Exception as error:
            result = error
        queue.put((rank, pickle.dumps(result)))  # as bytes: a queue would share tensors' memory with a dead process
        distributed.destroy_process_group()

    def run(world, work, *arguments):
        torch.set_num_threads(1)  # a fork has but one
        queue = fork.Queue()
        children = [fork.Process(target=one, args=(rank, world, queue, work, arguments)) for rank in range(world)]
        for child in children:
            child.start()
        try:
            found = {rank: pickle.loads(result) for rank, result in (queue.get(timeout=200) for _ in children)}
        finally:
            for child in children:
                child.join(20)
                child.kill()
        (tmp_path / "meet").unlink(missing_ok=True)
        for result in found.values():
            if isinstance(result, Exception):
                raise result
        return [found[rank] for rank in range(world)]

    return run
