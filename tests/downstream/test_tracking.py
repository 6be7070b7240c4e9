"""The tracker: geometry, layouts, pairs, losses, and whole cells on tiny made-up videos."""

import json
import os
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from downstream.backbone import TimmBackbone
from downstream.task import Job, MissingData, TaskError
from downstream.tracking import evaluate
from downstream.tracking.crops import Window, cut, jittered, window_around
from downstream.tracking.follow import damped, keep_inside
from downstream.tracking.frames import FrameStore
from downstream.tracking.metrics import Track, score_tracks, unmoved
from downstream.tracking.model import coverage
from downstream.tracking.pairs import PairDataset, PairStyle, draw_frames
from downstream.tracking.run import build_tracker, read_settings, train
from downstream.tracking.train import extract, optimise
from downstream.tracking.videos import GOT10kVideos, LaSOTVideos, OTBVideos, TrackingNetVideos, Video, read_videos

torch.set_num_threads(1)
TINY = {
    "template_size": 16, "search_size": 32, "width": 16, "layers": 1, "heads": 2, "epochs": 2, "pairs_per_epoch": 16,
    "batch_size": 8, "smallest": 4.0,
}


def write_video(frames, truth, count=6, size=64, name="{:08d}.jpg", first=1, seed=0):
    """A bright square that moves over grey noise; returns its boxes (x, y, w, h)."""
    frames.mkdir(parents=True)
    truth.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    colour, boxes = rng.integers(150, 255, 3), []
    for i in range(count):
        picture = rng.integers(60, 100, (size, size, 3), dtype=np.uint8)
        x, y = 10 + 3 * i, 20 + 2 * i
        picture[y : y + 14, x : x + 12] = colour
        assert cv2.imwrite(str(frames / name.format(i + first)), picture)
        boxes.append([x, y, 12, 14])
    np.savetxt(truth, boxes, "%.2f", ",")
    return np.array(boxes, float)


@pytest.fixture
def lasot(tmp_path):
    """Two training and two test videos."""
    for number in range(1, 5):
        folder = tmp_path / "cup" / f"cup-{number}"
        write_video(folder / "img", folder / "groundtruth.txt", seed=number)
        for flags in ("full_occlusion.txt", "out_of_view.txt"):
            (folder / flags).write_text("0,0,0,0,0,0")
    (tmp_path / "training_set.txt").write_text("cup-1\ncup-2\n")
    (tmp_path / "testing_set.txt").write_text("cup-3\ncup-4\n")
    return {"layout": "lasot", "root": str(tmp_path), "train": "training_set.txt", "test": "testing_set.txt"}


def job(backbone, data, work_dir, protocol="frozen", seed=0, progress=None, **settings):
    work_dir.mkdir(exist_ok=True)
    more = {"progress": progress} if progress else {}
    return Job(backbone, "tracking", protocol, data, {**TINY, **settings}, seed, "cpu", work_dir, **more)


# --- geometry ---------------------------------------------------------------------------------------------------------


def test_window_spans_its_factor_and_boxes_come_back():
    box = np.array([30.5, 12.25, 20, 20])
    window = window_around(box, 4, 96)
    assert window.scale[0] == pytest.approx(96 / 80)
    assert window.to_crop(box) == pytest.approx([36, 36, 24, 24])
    rng = np.random.default_rng(0)
    for _ in range(50):
        box = rng.uniform(3, 60, 4)
        window = jittered(window_around(box, 4, 96), box, 0.25, 3.0, rng)
        inside = window.to_crop(box)
        assert window.to_picture(inside) == pytest.approx(box)
        centre = inside[:2] + inside[2:] / 2
        assert (centre > 0).all()
        assert (centre < 96).all()


@pytest.mark.parametrize("factor", [1.0, 2.0])
def test_pixels_land_where_boxes_say(factor):
    picture = np.zeros((60, 80, 3), np.uint8)
    picture[20:30, 40:50] = 255
    crop = cut(picture, Window((45.0, 25.0), (factor, factor), 40))
    side = int(10 * factor)
    start = 20 - side // 2
    expected = np.zeros((40, 40), bool)
    expected[start : start + side, start : start + side] = True
    assert ((crop[..., 0] > 127) == expected).all()


def test_shrunk_crop_averages_and_keeps_its_place():
    picture = np.zeros((400, 400, 3), np.uint8)
    picture[100:200, 150:250] = 200
    picture[100:200:2, 150:250] = 0  # stripes that skipping pixels would make all or nothing
    crop = cut(picture, Window((200.0, 150.0), (0.25, 0.25), 64))
    assert crop[28:36, 28:36].mean() == pytest.approx(100, abs=3)
    mass = crop[..., 0].astype(float)
    assert (mass.sum(0) @ (np.arange(64) + 0.5)) / mass.sum() == pytest.approx(32, abs=0.15)


def test_padding_is_the_mean_colour():
    picture = np.zeros((20, 20, 3), np.uint8)
    picture[:, 10:] = (200, 100, 50)
    crop = cut(picture, Window((0.0, 0.0), (1.0, 1.0), 40))
    assert crop[5, 5].tolist() == [100, 50, 25]


def test_keep_inside():
    assert keep_inside(np.array([-5.0, 10, 20, 20]), (50, 50), 4).tolist() == [0, 10, 15, 20]
    assert keep_inside(np.array([60.0, 10, 5, 5]), (50, 50), 4) is None
    assert keep_inside(np.array([49.0, 10, 5, 20]), (50, 50), 4).tolist() == [46, 10, 4, 20]
    assert keep_inside(np.array([np.nan, 1, 1, 1]), (50, 50), 4) is None


def test_damped_size_keeps_the_centre():
    before, found = np.array([0.0, 0, 10, 10]), np.array([20.0, 20, 40, 10])
    assert damped(found, before, 1.0) == pytest.approx(found)
    assert damped(found, before, 0.0) == pytest.approx([35, 20, 10, 10])
    assert damped(found, before, 0.5) == pytest.approx([30, 20, 20, 10])  # geometric mean of 10 and 40


def test_coverage():
    share = coverage(torch.tensor([[4.0, 0.0, 8.0, 8.0]]), 2, 16).view(2, 2)
    assert share.tolist() == [[0.5, 0.5], [0, 0]]


# --- layouts ----------------------------------------------------------------------------------------------------------


def test_lasot_layout(lasot):
    root = Path(lasot["root"])
    (root / "cup/cup-1/full_occlusion.txt").write_text("0,0,1,0,0,0")
    (root / "cup/cup-1/out_of_view.txt").write_text("0,0,0,0,0,1")
    video = LaSOTVideos(root, "training_set.txt").videos()[0]
    assert video.name == "cup-1"
    assert Path(video.frames[0]).name == "00000001.jpg"
    assert video.visible.tolist() == [True, True, False, True, True, False]
    assert video.boxes[1].tolist() == [13, 22, 12, 14]
    assert [len(group) for group in read_videos(lasot, "train", 1)] == [1]


def test_got10k_layout(tmp_path):
    folder = tmp_path / "val" / "GOT-10k_Val_000001"
    write_video(folder, folder / "groundtruth.txt")
    (folder / "cover.label").write_text("8\n8\n0\n8\n8\n8\n")
    (folder / "absence.label").write_text("0\n0\n0\n1\n0\n0\n")
    (tmp_path / "val" / "list.txt").write_text("GOT-10k_Val_000001\n")
    (tmp_path / "val" / "split.txt").write_text("0\n")
    for part in ("val", "val/split.txt"):
        video = GOT10kVideos(tmp_path, part).videos()[0]
        assert video.visible.tolist() == [True, True, False, False, True, True]
        assert len(video.frames) == 6


def test_annotations_that_are_no_numbers_are_one_line(lasot, tmp_path):
    (Path(lasot["root"]) / "cup/cup-3/full_occlusion.txt").write_text("<html>not found</html>")
    with pytest.raises(TaskError, match="whole numbers expected, copy the annotation again"):
        LaSOTVideos(lasot["root"], lasot["test"]).video("cup-3")
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "list.txt").write_text("GOT-10k_Train_000001\n")
    (tmp_path / "train" / "split.txt").write_text("0\n5\n")
    with pytest.raises(TaskError, match=r"counts up to 5, but list\.txt beside it has 1 videos"):
        GOT10kVideos(tmp_path, "train/split.txt").names()


@pytest.mark.parametrize("separator", [",", "\t", "  "])
def test_otb_layout(tmp_path, separator):
    boxes = write_video(tmp_path / "Car/img", tmp_path / "Car/groundtruth_rect.txt", name="{:04d}.jpg")
    for target in ("1", "2"):
        np.savetxt(tmp_path / f"Car/groundtruth_rect.{target}.txt", boxes + int(target), "%d", separator)
    (tmp_path / "Car/groundtruth_rect.txt").unlink()
    videos = OTBVideos(tmp_path).videos()
    assert [video.name for video in videos] == ["Car.1", "Car.2"]
    assert videos[1].boxes[0].tolist() == [12, 22, 14, 16]


def test_otb_span_of_david(tmp_path):
    boxes = write_video(tmp_path / "David/img", tmp_path / "David/t.txt", count=4, first=298, name="{:04d}.jpg")
    np.savetxt(tmp_path / "David/groundtruth_rect.txt", boxes[2:], "%d", ",")
    assert [Path(frame).name for frame in OTBVideos(tmp_path).videos()[0].frames] == ["0300.jpg", "0301.jpg"]


def test_trackingnet_layout(tmp_path):
    root = tmp_path / "TRAIN_0"
    write_video(root / "frames/abc", root / "anno/abc.txt", count=11, size=80, name="{}.jpg", first=0)
    video = TrackingNetVideos(tmp_path, "TRAIN_0").videos()[0]
    assert [Path(frame).stem for frame in video.frames] == [str(i) for i in range(11)]  # by number, 10 after 9
    (root / "anno/abc.txt").write_text("1,2,3,4\n")
    with pytest.raises(TaskError, match="only the first box is public"):
        TrackingNetVideos(tmp_path, "TRAIN_0").videos()


def test_parts_may_be_several_data_sets(lasot):
    section = {"layout": "lasot", "root": lasot["root"], "part": "training_set.txt"}
    assert len(read_videos({"train": [section, section]}, "train")) == 2


def test_several_parts_of_one_section_are_one_group(lasot, tmp_path):
    """TrackingNet's chunks would otherwise be drawn as often as whole data sets, each."""
    for chunk in ("TRAIN_0", "TRAIN_1"):
        write_video(tmp_path / chunk / "frames/abc", tmp_path / chunk / "anno/abc.txt", name="{}.jpg", first=0)
    chunks = {"layout": "trackingnet", "root": str(tmp_path), "part": ["TRAIN_0", "TRAIN_1"]}
    groups = read_videos({"train": [{**lasot, "part": "training_set.txt"}, chunks]}, "train")
    assert [[video.name for video in group] for group in groups] == [["cup-1", "cup-2"], ["abc", "abc"]]
    assert len(read_videos({"train": chunks}, "train", 1)[0]) == 1


def test_coco_objects_are_videos_of_one_frame(tmp_path):
    (tmp_path / "train2017").mkdir()
    assert cv2.imwrite(str(tmp_path / "train2017/7.jpg"), np.full((40, 40, 3), 99, np.uint8))
    boxes = [([1, 2, 20, 10], 0), ([5, 5, 8, 8], 1), ([5, 5, 0, 8], 0), ([10, 20, 12, 14], 0)]  # a crowd, no area
    (tmp_path / "annotations").mkdir()
    path = tmp_path / "annotations/instances_train2017.json"
    path.write_text(json.dumps({
        "images": [{"id": 70, "file_name": "7.jpg"}],
        "annotations": [{"image_id": 70, "bbox": box, "iscrowd": crowd} for box, crowd in boxes]}))
    section = {"train": {"layout": "coco", "root": str(tmp_path), "part": "annotations/instances_train2017.json"}}
    (group,) = read_videos(section, "train")
    assert [video.boxes.tolist() for video in group] == [[[1, 2, 20, 10]], [[10, 20, 12, 14]]]
    pair = PairDataset([group], 2, 0, PairStyle(16, 32), FrameStore())[1]
    assert pair["inputs"]["search"].shape == (3, 32, 32)
    (tmp_path / "train2017/7.jpg").unlink()
    with pytest.raises(MissingData, match=r"names 7\.jpg, which is not in"):
        read_videos(section, "train")
    path.write_text('{"images": []')
    with pytest.raises(TaskError, match="is not COCO JSON"):
        read_videos(section, "train")


def truncate(path):
    path.write_bytes(path.read_bytes()[:-200])


@pytest.mark.parametrize(
    ("spoil", "kind", "words"),
    [
        (lambda r: (r / "testing_set.txt").unlink(), MissingData, "testing_set.txt"),
        (lambda r: (r / "cup/cup-3/groundtruth.txt").unlink(), MissingData, "cup-3/groundtruth.txt"),
        (lambda r: (r / "cup/cup-3/img/00000004.jpg").unlink(), TaskError, "6 boxes for 5 frames"),
        (lambda r: [f.unlink() for f in (r / "cup/cup-3/img").iterdir()], MissingData, "no frames"),
        (lambda r: (r / "cup/cup-3/groundtruth.txt").write_text("0,0,0,9\n" * 6), TaskError, "no area"),
        (lambda r: (r / "cup/cup-3/groundtruth.txt").write_text("1,1,9,9\n" * 5 + "nan,1,2,3\n"), TaskError, "line 6"),
        (lambda r: (r / "cup/cup-3/groundtruth.txt").write_text("1,1,9\n" * 6), TaskError, "four numbers"),
        (lambda r: (r / "cup/cup-3/groundtruth.txt").write_text("a,b,c,d\n" * 6), TaskError, "must hold x,y,w,h"),
        (lambda r: (r / "cup/cup-3/out_of_view.txt").write_text("0,0"), TaskError, "2 flags for 6 boxes"),
        (lambda r: (r / "cup/cup-3/full_occlusion.txt").write_text("1,1,1,1,1,1"), TaskError, "every frame"),
        (lambda r: truncate(r / "cup/cup-3/img/00000002.jpg"), TaskError, "00000002.jpg cannot be read as a picture"),
    ],
)
def test_faults_in_the_data_are_named_in_one_line(lasot, backbone, tmp_path, spoil, kind, words):
    spoil(Path(lasot["root"]))
    with pytest.raises(kind, match=words) as caught:
        evaluate(job(backbone, lasot, tmp_path / "work", epochs=1, pairs_per_epoch=8))
    assert "\n" not in str(caught.value)


def test_missing_root_and_wrong_requests(backbone, lasot, tmp_path):
    with pytest.raises(MissingData, match="nowhere"):
        evaluate(job(backbone, {**lasot, "root": str(tmp_path / "nowhere")}, tmp_path / "work"))
    with pytest.raises(TaskError, match="did you mean 'search_size'"):
        evaluate(job(backbone, lasot, tmp_path / "work", serch_size=3))
    with pytest.raises(TaskError, match="unknown layout"):
        evaluate(job(backbone, {**lasot, "layout": "vot"}, tmp_path / "work"))
    with pytest.raises(TaskError, match="protocol 'knn'"):
        evaluate(job(backbone, lasot, tmp_path / "work", "knn"))
    with pytest.raises(TaskError, match="multiple of the backbone's patch"):
        evaluate(job(backbone, lasot, tmp_path / "work", search_size=33))


# --- pairs ------------------------------------------------------------------------------------------------------------


def test_frames_of_a_pair_respect_gap_and_visibility():
    visible = np.ones(100, bool)
    visible[40:60] = False
    video = Video("v", ("f",) * 100, np.full((100, 4), 5.0), visible)
    rng = np.random.default_rng(0)
    for _ in range(200):
        first, second = draw_frames(video, 7, rng)
        assert 0 < abs(first - second) <= 7
        assert visible[first]
        assert visible[second]
    assert draw_frames(Video("v", ("f",), np.full((1, 4), 5.0), np.ones(1, bool)), 7, rng) == (0, 0)


def test_pairs_depend_on_seed_and_index_only(lasot):
    groups, style = read_videos(lasot, "train"), PairStyle(template_size=16, search_size=32)
    one, two, other = (PairDataset(groups, 8, seed, style, FrameStore(size)) for seed, size in ((3, 8), (3, 0), (4, 8)))
    list(two)  # other items drawn before change nothing
    same = [torch.equal(a["inputs"]["search"], b["inputs"]["search"]) for a, b in zip(one, two, strict=True)]
    assert all(same)
    assert not torch.equal(one[0]["inputs"]["search"], other[0]["inputs"]["search"])


def test_boxes_of_pairs_surround_the_target(lasot):
    style = PairStyle(16, 64, brightness=0.0, grey=0.0, recolour=0.0)
    for item in PairDataset(read_videos(lasot, "train"), 30, 0, style, FrameStore()):
        x1, y1, x2, y2 = item["data_samples"].gt_instances.bboxes[0].clamp(0, 64).round().int().tolist()
        inside = item["inputs"]["search"].float().mean(0)[y1 + 2 : y2 - 2, x1 + 2 : x2 - 2]
        if inside.numel() > 20:
            assert inside.mean() > 130  # the square is bright, the ground is not


# --- model ------------------------------------------------------------------------------------------------------------


def trainer(lasot, backbone, tmp_path, protocol, **changed):
    asked = job(backbone, lasot, tmp_path / "work", protocol, **changed)
    settings = read_settings(asked.settings)
    model = build_tracker(asked, settings)
    pairs = PairDataset(read_videos(lasot, "train"), 16, 0, settings.pair_style(), FrameStore())
    return model, pairs, asked


@pytest.mark.parametrize("layers", [0, 1])
def test_search_tokens_attend_to_the_template_with_and_without_an_encoder(lasot, backbone, tmp_path, layers):
    from mmengine.dataset import default_collate

    model, pairs, _ = trainer(lasot, backbone, tmp_path, "frozen", layers=layers)
    assert len(model.encoder) == layers
    batch = model.data_preprocessor(default_collate([pairs[i] for i in range(4)]), True)
    sum(model(**batch, mode="loss").values()).backward()
    gradient = model.positions["template"].grad  # label propagation does not pass them: attention alone
    assert gradient.abs().sum() > 0


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"layers": -1}, "layers must be a whole number from 0 on, not -1"),
        ({"heads": 0}, "heads must be a whole number of at least 1, not 0"),
        ({"window_weight": 1.2}, "window_weight must be a share from 0 to 1, not 1.2"),
        ({"lr": [1e-3, 2e-3]}, "lr must be a number from 0 on"),
    ],
)
def test_impossible_settings_are_named(settings, words):
    with pytest.raises(TaskError, match=words):
        read_settings(settings)


@pytest.mark.parametrize("protocol", ["frozen", "finetune"])
def test_gradient_reaches_the_backbone_only_in_finetune(lasot, backbone, tmp_path, protocol):
    from mmengine.dataset import default_collate

    model, pairs, _ = trainer(lasot, backbone, tmp_path, protocol)
    model.train()
    batch = model.data_preprocessor(default_collate([pairs[i] for i in range(4)]), True)
    losses = model(**batch, mode="loss")
    assert set(losses) == {"loss_cls", "loss_bbox"}
    sum(losses.values()).backward()
    gradients = [parameter.grad for parameter in model.backbone.parameters()]
    reached = any(gradient is not None and gradient.abs().sum() > 0 for gradient in gradients)
    assert reached == (protocol == "finetune")
    assert model.project.weight.grad.abs().sum() > 0
    assert model.compare.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224", "swinv2_tiny_window8_256", "beit_base_patch16_224"])
def test_a_trained_backbone_takes_two_crop_sizes(name, lasot, make_backbone, tmp_path):
    """Template and search crops have their own windows and tables, and one set of weights that both train."""
    from mmengine.dataset import default_collate

    swin = {"img_size": 64, "window_size": 4, "embed_dim": 16, "depths": [2, 2], "num_heads": [1, 2]}
    beit = {"img_size": 64, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2, "use_abs_pos_emb": False,
            "use_rel_pos_bias": True, "init_values": 0.1}
    sizes = {"template_size": 32, "search_size": 64}  # stage 2 of Swin: maps of 4 and 8 tokens a side
    asked = job(make_backbone(name, beit if name.startswith("beit") else swin), lasot, tmp_path / "work", "finetune",
                **sizes)
    model = build_tracker(asked, read_settings(asked.settings))
    pairs = PairDataset(read_videos(lasot, "train"), 8, 0, PairStyle(32, 64), FrameStore())
    batch = model.data_preprocessor(default_collate([pairs[i] for i in range(4)]), True)
    template = batch["inputs"]["template"]
    for key, weight in model.backbone.net.named_parameters():
        if key.endswith(("norm1.weight", "norm2.weight")):
            torch.nn.init.ones_(weight)  # Swin V2 starts from 0: its attention would do nothing

    # the template alone reaches every weight that comes before its map
    model.train()
    model.extract_feat(template).square().sum().backward()
    lacking = [key for key, p in model.backbone.net.named_parameters() if p.grad is None or not p.grad.abs().sum()]
    assert not [key for key in lacking if "bias_table" in key or "qkv.weight" in key or "cpb_mlp" in key], lacking
    model.zero_grad()

    # a step changes what the template gives, through the same weights: as a fresh copy of the trained folder says
    before = model.eval().extract_feat(template).detach()
    model.train()
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    sum(model(**batch, mode="loss").values()).backward()
    optimiser.step()
    model.eval()
    after = model.extract_feat(template).detach()
    assert not torch.allclose(before, after)
    trained = TimmBackbone(asked.backbone, input_size=64)
    trained.net.load_state_dict(model.backbone.net.state_dict())
    assert torch.allclose(trained(template)[-1], after, atol=1e-5)
    assert set(model.backbone.state_dict()) == {f"net.{key}" for key in model.backbone.net.state_dict()}


def test_the_tracker_trains_in_half_precision_and_with_processes(lasot, backbone, tmp_path):
    """amp itself asks for a GPU; the same autocast on the CPU must not mix precisions in the losses."""
    from mmengine.dataset import default_collate

    model, pairs, asked = trainer(lasot, backbone, tmp_path, "finetune")
    batch = model.data_preprocessor(default_collate([pairs[i] for i in range(4)]), True)
    with torch.autocast("cpu", torch.bfloat16):
        losses = model.train()(**batch, mode="loss")
    assert all(loss.isfinite() for loss in losses.values())
    values = {"lr": 1e-3, "backbone_lr": 0.1, "weight_decay": 0, "clip": 1, "warmup": 0, "drop_at": 0.8}
    found = []
    for workers in (0, 1):
        fresh, pairs, asked = trainer(lasot, backbone, tmp_path, "finetune")
        found.append(optimise(fresh, pairs, 2, 4, 0, **values, work_dir=asked.work_dir, num_workers=workers, amp=True))
    assert found[0] == found[1]  # the pairs are the same


def test_loss_falls(lasot, backbone, tmp_path):
    model, pairs, asked = trainer(lasot, backbone, tmp_path, "frozen")
    features = extract(model, pairs, 8, lambda done, total: None)
    losses = optimise(
        model, features, 60, 8, 0, lr=5e-3, backbone_lr=0.1, weight_decay=0, clip=1, warmup=0.05, drop_at=0.8,
        work_dir=asked.work_dir,
    )
    assert np.mean(losses[-10:]) < 0.85 * np.mean(losses[:5])


def test_predicted_box_is_the_best_tokens(lasot, backbone, tmp_path):
    from mmengine.dataset import default_collate

    model, pairs, _ = trainer(lasot, backbone, tmp_path, "frozen")
    model.eval()
    model.window_weight = 1.0  # the window alone decides: the middle; boxes start as the expected ones
    batch = default_collate([pairs[0]])
    box = model.test_step(batch)[0].pred_instances.bboxes[0].tolist()
    assert box == pytest.approx([8, 8, 16, 16])  # token (1, 1) of 4 x 4 has its centre at 12, the expected side is 8


def test_only_touched_tokens_are_positive(lasot, backbone, tmp_path):
    model, _, _ = trainer(lasot, backbone, tmp_path, "frozen")
    touched = model.touched(torch.tensor([[1.0, 1, 9, 7], [-9, -9, -5, -5]])).view(2, 4, 4)
    assert touched[0].nonzero().tolist() == [[0, 0], [0, 1]]
    assert touched[1].nonzero().tolist() == [[0, 0]]  # none is touched: the nearest


# --- whole cells ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", ["frozen", "finetune"])
def test_cell_end_to_end_and_again(lasot, backbone, tmp_path, capsys, protocol):
    stages = {}
    asked = job(
        backbone, lasot, tmp_path / "a", protocol, progress=lambda s, done, total: stages.update({s: (done, total)})
    )
    first = evaluate(asked)
    again = evaluate(job(backbone, lasot, tmp_path / "b", protocol))
    assert first == again
    assert set(first.metrics) == {"SUC", "P", "NP@.20", "NP mean", "AO", "SR50", "SR75"}
    assert first.metrics["NP@.20"] != first.metrics["NP mean"]
    assert all(0 <= value <= 100 for value in first.metrics.values())
    assert len(first.items["SUC"]) == 2
    videos = read_videos(asked.data, "test")[0]
    still = [Track(v.name, np.stack([v.boxes[0]] * len(v.boxes)), v.boxes, v.visible, (1, 1)) for v in videos]
    assert first.baselines == {"SUC": {"a box that never moves": score_tracks(still).means["SUC"]}}
    assert first.train_images == 64  # 2 crops x 16 pairs x 2 epochs
    assert stages["train"] == (4, 4)
    assert stages["track"] == (10, 10)
    assert ("features" in stages) == (protocol == "frozen")
    assert capsys.readouterr().out == ""
    assert [file.name for file in (tmp_path / "a").iterdir()] == ["log.jsonl"]


def test_another_seed_and_uncached_features(lasot, backbone, tmp_path):
    first = evaluate(job(backbone, lasot, tmp_path / "a"))
    other = evaluate(job(backbone, lasot, tmp_path / "b", seed=1))
    assert first.items != other.items
    asked = job(backbone, lasot, tmp_path / "c", features_mb=0)
    model = build_tracker(asked, read_settings(asked.settings))
    assert len(train(asked, read_settings(asked.settings), model, FrameStore())) == 4


@pytest.mark.realdata
def test_real_layouts_load_and_run(backbone, tmp_path):
    root = Path(os.environ["BENCH_DATA"]) / "tracking"
    lasot = {"layout": "lasot", "root": str(root / "LaSOT"), "train": "training_set.txt", "test": "testing_set.txt"}
    assert [len(video.frames) for video in read_videos(lasot, "test")[0]] == [160, 99]
    still = [unmoved(Track(v.name, v.boxes, v.boxes, v.visible, (1, 1))) for v in read_videos(lasot, "test")[0]]
    assert score_tracks(still).means["SUC"] == pytest.approx(10.06, abs=0.005)
    assert [len(video.frames) for video in read_videos(lasot, "train")[0]] == [164, 100, 160, 120, 70, 160]
    assert len(OTBVideos(root / "OTB").videos()[0].frames) == 120
    assert len(GOT10kVideos(root / "GOT-10k", "val").videos()[0].frames) == 81
    mixed = {
        "train": [
            {"layout": "otb", "root": str(root / "OTB")},
            {"layout": "got10k", "root": str(root / "GOT-10k"), "part": "train"},
        ],
        "test": {"layout": "got10k", "root": str(root / "GOT-10k"), "part": "val"},
    }
    assert len(evaluate(job(backbone, mixed, tmp_path / "work", epochs=1)).items["SUC"]) == 1


@pytest.mark.parametrize("protocol", ["frozen", "finetune"])
def test_training_starts_from_the_folders_weights(lasot, backbone, tmp_path, protocol, monkeypatch):
    """mmengine's Runner initialises models when training begins; with a rate of 0 nothing may change."""
    from safetensors.torch import load_file

    from downstream.tracking import run

    seen = {}

    def spy(model, *rest, **more):
        seen.update({key: value.clone() for key, value in model.backbone.net.state_dict().items()})
        return follow(model, *rest, **more)

    follow = run.follow
    monkeypatch.setattr(run, "follow", spy)
    evaluate(job(backbone, lasot, tmp_path / "w", protocol, lr=0.0, weight_decay=0.0))
    want = load_file(backbone / "backbone.safetensors")
    assert all(torch.equal(seen[key], value) for key, value in want.items())
