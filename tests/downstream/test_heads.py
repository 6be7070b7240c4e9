"""Heads, crops and layouts of the papers' recipes, end to end on a dozen pictures."""

import json
import shutil
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.registry import MODELS
from mmengine.structures import InstanceData
from torch import nn

from downstream import engine
from downstream.backbone import TimmBackbone
from downstream.task import TASKS, TaskError, evaluate

UPER = {"head": "uper", "out_indices": "pyramid", "channels": 16, "auxiliary": 8}
DECONV = {"head": "deconv", "crop_size": (32, 32), "imagenet_norm": False, "flip_test": True, "window": (32, 32),
          "window_stride": (16, 16), "colour": True, "cut_depth": 0.5, "schedule": "rise_fall", "min_lr": 0.06,
          "test_batch": 1}


@pytest.mark.parametrize(
    ("task", "protocol", "settings"),
    [
        ("segmentation", "finetune", {**UPER, "scale": (64, 40), "slide_stride": (24, 24), "photometric": True,
                                      "schedule": "poly", "test_batch": 1}),
        ("depth", "finetune", DECONV),
        ("pose", "finetune", {"head": "simple", "input_size": (48, 32), "half_body": True, "patch_padding": 2,
                              "loss_weight": 1.0, "schedule": "steps", "drops": (0.5,)}),
        ("pose", "frozen", {"head": "classic", "deconv": (8, 8), "input_size": (48, 32)}),
        ("classification", "finetune", {"resize": 36, "crop_scale": (0.5, 1.0), "rand_augment": True, "erase": 0.5,
                                        "mixup": 0.8, "cutmix": 1.0, "label_smoothing": 0.1}),
    ],
)
def test_the_papers_recipes_run_and_learn(task, protocol, settings, make_job, make_backbone, monkeypatch):
    losses = []

    def noted(self, runner, batch_idx, data_batch=None, outputs=None):
        losses.append(outputs["loss"].item())

    monkeypatch.setattr(engine.Watch, "after_train_iter", noted)
    monkeypatch.setattr(engine.Watch, "mean", lambda self: losses[-1])
    kwargs = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 4, "num_heads": 2}
    folder = make_backbone("vit_tiny_patch16_224", kwargs)
    outcome = evaluate(make_job(task, protocol, folder=folder, **{"lr": 1e-3, "epochs": 8, "clip": None, **settings}))
    assert len(losses) == 8 * 3
    assert outcome.train_images == 8 * 12
    assert sum(losses[-6:]) < sum(losses[:6])
    for metric in TASKS[task].metrics:
        assert metric.low <= outcome.metrics[metric.name] <= metric.high


def test_uper_on_swin_reads_its_four_stages(make_backbone, make_job):
    """No pyramid is made of them, logits have the first one's size, and every stage gets a gradient."""
    from downstream.segmentation import DEFAULTS, recipe

    kwargs = {"img_size": 64, "window_size": 2, "embed_dim": 16, "depths": [1, 1, 1, 1], "num_heads": [1, 2, 4, 8]}
    folder = make_backbone("swinv2_tiny_window8_256", kwargs)
    job = make_job("segmentation", "finetune", folder=folder)
    with engine.quiet("mmseg"):
        torch.manual_seed(0)
        chosen = {**engine.COMMON, **DEFAULTS, **UPER, "input_size": 64}
        model = MODELS.build(ConfigDict(recipe(job, chosen, ["one", "two", "three"]).model)).train()
        assert not model.with_neck
        maps = model.extract_feat(torch.randn(2, 3, 64, 64))
        assert [tuple(m.shape[1:]) for m in maps] == [(16, 16, 16), (32, 8, 8), (64, 4, 4), (128, 2, 2)]
        logits = model.decode_head(maps)
        assert logits.shape == (2, 3, 16, 16)
        nn.functional.cross_entropy(logits, torch.randint(0, 3, (2, 16, 16))).backward()
    for stage in model.backbone.net.layers:
        assert stage.blocks[0].norm2.weight.grad.abs().sum() > 0  # which starts at 0, and with it what lies before


@pytest.mark.parametrize(
    ("task", "settings"),
    [("segmentation", {"scale": (64, 40), "slide_stride": (24, 24)}),
     ("depth", {name: value for name, value in DECONV.items() if name != "head"}),
     ("pose", {"layers": (-1,), "head": "classic", "deconv": (8, 8), "flip_test": True})],
)
def test_grids_of_heads_take_augmented_pictures_and_the_papers_tests(task, settings, make_job):
    outcome = evaluate(make_job(task, **{"layers": (0, -1), "cache": False, "epochs": 1, "test_batch": 1, **settings}))
    assert outcome.train_images == 10
    assert outcome.chosen["layer"] in (0, -1)
    assert outcome.chosen["lr"] in (1e-3, 1e-2)


def test_the_maps_of_the_pyramid_follow_the_depth():
    from downstream.segmentation import pyramid

    assert [pyramid(layers) for layers in (4, 12, 24, 32)] == [
        (0, 1, 2, 3), (3, 5, 7, 11), (7, 11, 15, 23), (10, 15, 20, 31)]


def test_a_picture_wider_than_four_to_one_is_scored(data, tmp_path, make_job):
    """Its short side is less than the window that slides over it."""
    root = tmp_path / "wide"
    shutil.copytree(data / "ade", root / "ade")
    for folder, suffix in (("images", ".jpg"), ("annotations", ".png")):
        path = root / "ade" / folder / "validation" / f"0{suffix}"
        picture = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        assert cv2.imwrite(str(path), cv2.resize(picture, (96, 16), interpolation=cv2.INTER_NEAREST))
    job = make_job("segmentation", lr=1e-3, root=root, scale=(64, 32), slide_stride=(16, 16), test_batch=1, epochs=1)
    assert 0 <= evaluate(job).metrics["mIoU"] <= 100


def test_lars_leaves_biases_alone():
    """They have another scale than weights: MAE's probe gives them the plain rate and no decay."""
    from downstream.optimise import optimiser

    layer = torch.nn.Linear(3, 2)
    groups = [{"params": list(layer.parameters()), "lr": 0.5}]
    lars = optimiser({"optimizer": "LARS", "weight_decay": 0.1}, groups)
    layer.weight.grad, layer.bias.grad = torch.ones(2, 3), torch.ones(2)
    before, weight = layer.bias.detach().clone(), layer.weight.detach().clone()
    lars.step()
    assert torch.allclose(layer.bias, before - 0.5)
    assert (layer.weight - weight).abs().max() < 0.05  # adapted: a thousandth of the weights' norm


def test_cut_depth_shows_the_files_numbers_before_flip_and_crop(make_job):
    from downstream.depth import DEFAULTS, CutDepth, recipe

    chosen = {**engine.COMMON, **DEFAULTS, **DECONV, "cut_depth": 0.25}
    steps = [step["type"] for step in recipe(make_job("depth", "finetune"), chosen).train_augmented["pipeline"]]
    assert steps.index("mmseg.CutDepth") < steps.index("mmengine.FlipDense") < steps.index("mmseg.CutDense")
    depth = np.linspace(1, 9, 40 * 60, dtype=np.float32).reshape(40, 60)
    np.random.seed(0)
    cut, widths = CutDepth(share=0.25, scale=1000), []
    for _ in range(400):
        picture = np.zeros((40, 60, 3), np.uint8)
        found = cut({"img": picture, "gt_depth_map": depth})["img"]
        assert not picture.any()  # the original is not written to
        columns = np.flatnonzero(found.any((0, 2)))
        if len(columns):
            widths.append(len(columns) / (60 - columns[0]))
            band = found[:, columns[0] : columns[-1] + 1]
            expected = np.rint(depth[:, columns[0] : columns[-1] + 1] * 1000).astype(int) % 256
            assert (band == expected[..., None]).all()
    assert len(widths) / 400 == pytest.approx(0.25, abs=0.06)
    assert sum(width > 0.8 for width in widths) <= 5  # at most three quarters, but of the last columns


@pytest.mark.parametrize(
    ("task", "settings", "message"),
    [("segmentation", {"head": "upper"}, "linear, uper"), ("segmentation", {"head": "uper"}, "four different out_ind"),
     ("segmentation", {"scale": (64, 48)}, "slide_stride"), ("depth", {"head": "dpt"}, "linear, deconv"),
     ("depth", {"crop_size": (64, 64)}, "lower crop_size"), ("pose", {"head": "vit"}, "linear, classic, simple")],
)
def test_settings_that_make_no_sense_are_one_line(task, settings, message, make_job):
    with pytest.raises(TaskError, match=message) as caught:
        evaluate(make_job(task, "finetune", **settings))
    assert "\n" not in str(caught.value)


def test_the_papers_fine_tuning_reads_the_patches_and_norms_once(make_job, backbone):
    """MAE, BEiT: no final norm, mean of the patches, LayerNorm; the probe of MAE: the class token. ViTPose: no neck."""
    from downstream import classification, pose

    images = torch.randn(2, 3, 32, 32)

    def built(module, task, scope, *more, protocol="finetune", **settings):
        job = make_job(task, protocol, **settings)
        chosen = engine.settings(job, **module.DEFAULTS)
        with engine.quiet(scope):
            return MODELS.build(ConfigDict(module.recipe(job, chosen, *more).model)).eval()

    model = built(classification, "classification", "mmpretrain", ["a", "b"], neck="layernorm", drop_path_rate=0.0)
    net = TimmBackbone(backbone).net
    tokens = net.forward_intermediates(images, intermediates_only=True, norm=False, output_fmt="NLC")[-1]
    expected = nn.functional.layer_norm(tokens.mean(1), (32,), eps=1e-6)
    assert torch.allclose(model.extract_feat(images)[0], expected, atol=1e-5)
    assert not any("backbone.net.norm" in name for name, _ in model.named_parameters())
    model = built(classification, "classification", "mmpretrain", ["a", "b"], protocol="frozen", layers=(0, -1),
                  pool="token")
    found = model.backbone(images)
    assert torch.allclose(found[1], net.forward_features(images)[:, 0], atol=1e-5)
    assert torch.allclose(found[0], net.blocks[0](net._pos_embed(net.patch_embed(images)))[:, 0], atol=1e-5)
    model = built(pose, "pose", "mmpose", neck="none")
    assert torch.equal(model.extract_feat(images)[-1], model.backbone(images)[-1])
    for setting in ({"neck": "layer"}, {"pool": "max"}, {"neck": "none", "layers": (-1,)}):
        with pytest.raises(TaskError, match=next(iter(setting))):
            evaluate(make_job("classification", "frozen", **setting))


# --- heads ------------------------------------------------------------------------------------------------------------


def test_the_official_depth_head_has_the_official_parts(make_job):
    from downstream.depth import DeconvDepthHead

    torch.manual_seed(0)
    head = DeconvDepthHead(
        in_channels=128, channels=128, width=16, deconvolutions=3, max_depth=10.0, in_index=-1, dropout_ratio=0.0,
        loss_decode={"type": "mmseg.SiLogLoss"}, align_corners=False,
    )
    other = torch.randn(1, 64, 8, 8)  # an earlier stage is not looked at
    out = head((other, torch.randn(2, 128, 2, 3)))
    assert out.shape == (2, 1, 2 * 32, 3 * 32)  # stride 32 to the picture's own size
    assert torch.allclose(out, torch.tensor(5.0), atol=0.01)  # weights near 0: half of the largest depth
    shapes = [tuple(p.shape) for name, p in head.named_parameters() if p.ndim == 4]
    assert shapes == [(128, 32, 2, 2), (32, 32, 2, 2), (32, 32, 2, 2), (16, 32, 3, 3), (16, 16, 3, 3), (1, 16, 3, 3)]


def test_the_official_silog_pools_the_pixels_of_a_batch(make_job):
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample

    from downstream.depth import DeconvDepthHead

    head = DeconvDepthHead(
        in_channels=4, channels=4, width=4, deconvolutions=0, max_depth=10.0, dropout_ratio=0.0,
        loss_decode={"type": "mmseg.SiLogLoss"}, align_corners=False,
    )
    truth = torch.tensor([[[1.0, 2.0], [0.0, 4.0]], [[3.0, 0.0], [0.0, 0.0]]])
    guess = torch.tensor([[[1.5, 2.0], [9.0, 3.0]], [[2.0, 9.0], [9.0, 9.0]]])
    samples = [SegDataSample(gt_depth_map=PixelData(data=t[None])) for t in truth]
    d = guess[truth > 0].log() - truth[truth > 0].log()  # 0 is no depth
    expected = (d.square().mean() - 0.5 * d.mean() ** 2).sqrt()
    assert torch.allclose(head.loss_by_feat(guess[:, None], samples)["loss_depth"], expected, atol=1e-6)


def test_the_flip_test_sees_both_sides(make_job):
    """A mirrored picture gives the mirrored prediction, which without the flip test it does not."""
    from downstream.depth import DEFAULTS, recipe

    def predicted(**settings):
        job = make_job("depth", "finetune")
        chosen = {**engine.COMMON, **DEFAULTS, "head": "deconv", "input_size": (32, 48), **settings}
        with engine.quiet("mmseg"):
            torch.manual_seed(0)
            model = MODELS.build(ConfigDict(recipe(job, chosen).model)).eval()
            for p in model.decode_head.parameters():
                torch.nn.init.normal_(p, std=0.3)
            images = torch.randn(1, 3, 32, 48)
            metas = [{"ori_shape": (32, 48), "img_shape": (32, 48)}]
            with torch.no_grad():
                return [model.inference(x, [dict(m) for m in metas]) for x in (images, images.flip(3))]

    one, mirrored = predicted()
    assert not torch.allclose(one, mirrored.flip(3), atol=1e-3)
    one, mirrored = predicted(flip_test=True, window=(32, 32), window_stride=(32, 16))
    assert torch.allclose(one, mirrored.flip(3), atol=1e-5)


# --- layouts ----------------------------------------------------------------------------------------------------------


def test_kitti_lists_crop_and_skip(tmp_path, make_job):
    """Raw pictures and annotated depth in their own folders, "None" where there is no depth, the 352 x 1216 crop."""
    rng, lines = np.random.default_rng(0), []
    for i in range(4):
        picture, depth = f"2011/drive/image_02/data/{i}.png", f"drive/proj_depth/groundtruth/image_02/{i}.png"
        for path, array in (
            (tmp_path / "raw" / picture, rng.integers(0, 255, (370, 1224, 3), dtype=np.uint8)),
            (tmp_path / "data_depth_annotated" / depth, rng.integers(256, 20480, (370, 1224)).astype(np.uint16)),
        ):
            path.parent.mkdir(parents=True, exist_ok=True)
            assert cv2.imwrite(str(path), array)
        lines.append(f"{picture} {depth} 721.5")
    lines.append("2011/drive/image_02/data/9.png None 721.5")
    (tmp_path / "list.txt").write_text("\n".join(lines) + "\n")
    job = make_job("depth", "finetune", **{**DECONV, "epochs": 1, "window": (352, 352), "window_stride": (352, 432),
                                           "flip_test": False, "batch_size": 2, "lr": 1e-3})
    section = {"root": str(tmp_path), "train_list": "list.txt", "test_list": "list.txt", "max_depth": 80.0,
               "depth_scale": 256, "crop": "garg", "kb_crop": True}
    outcome = evaluate(replace(job, data=section))
    assert len(outcome.items["rmse"]) == 4
    assert 0 < outcome.metrics["rmse"] < 80


def test_camvid_in_its_own_layout(tmp_path, make_job):
    rng = np.random.default_rng(0)
    for part, count in (("train", 6), ("val", 3)):
        for i in range(count):
            for folder, array in ((part, rng.integers(0, 255, (48, 64, 3), dtype=np.uint8)),
                                  (f"{part}annot", rng.integers(0, 12, (48, 64), dtype=np.uint8))):
                (tmp_path / folder).mkdir(exist_ok=True)
                assert cv2.imwrite(str(tmp_path / folder / f"{i}.png"), array)
    job = replace(make_job("segmentation", batch_size=2),
                  data={"root": str(tmp_path), "layout": "camvid", "train": "train", "val": "val"})
    assert 0 <= evaluate(job).metrics["mIoU"] <= 100
    from downstream.segmentation import ReadLabels

    found = ReadLabels(11, "camvid")({"seg_map_path": str(tmp_path / "valannot/0.png"), "ori_shape": (48, 64)})
    raw = cv2.imread(str(tmp_path / "valannot/0.png"), cv2.IMREAD_UNCHANGED)
    assert (found["gt_seg_map"] == np.where(raw == 11, 255, raw)).all()
    shutil.rmtree(tmp_path / "valannot")
    with pytest.raises(TaskError, match="valannot"):
        evaluate(job)


def test_a_detectors_boxes_take_the_place_of_the_truths(data, tmp_path, make_job):
    root = shutil.copytree(data / "coco", tmp_path / "coco")
    boxes = [{"image_id": i + 1, "category_id": 1, "bbox": [6.0, 6.0, 36.0, 36.0], "score": 0.5 + 0.05 * i}
             for i in range(8)]
    job = make_job("pose", lr=1e-3)

    def score(found):
        (root / "boxes.json").write_text(json.dumps(found))
        return evaluate(replace(job, data={**job.data, "root": str(root), "val_boxes": "boxes.json"})).metrics

    assert score(boxes)["AR"] == pytest.approx(evaluate(job).metrics["AR"])  # the truth's boxes, found again
    nothing = [{**box, "bbox": [0.0, 0.0, 2.0, 2.0]} for box in boxes]
    assert score(nothing)["AR"] == 0
    (root / "boxes.json").unlink()
    with pytest.raises(TaskError, match=r"boxes\.json"):
        evaluate(replace(job, data={**job.data, "root": str(root), "val_boxes": "boxes.json"}))


def test_people_of_other_pictures_do_not_count_under_a_limit(data, tmp_path, make_job, monkeypatch):
    """The truth as prediction scores 1 on three pictures of eight, not 3/8."""
    from mmpose.models import TopdownPoseEstimator

    def told(self, inputs, data_samples=None, mode="loss"):
        for sample in data_samples:
            sample.pred_instances = InstanceData(
                keypoints=sample.gt_instances.keypoints, keypoint_scores=np.ones((1, 17), np.float32))
        return data_samples

    monkeypatch.setattr(engine.frozen, "train_heads", lambda *arguments: (0, {}))
    monkeypatch.setattr(TopdownPoseEstimator, "forward", told)
    root = shutil.copytree(data / "coco", tmp_path / "coco")
    boxes = [{"image_id": i + 1, "category_id": 1, "bbox": [6.0, 6.0, 36.0, 36.0], "score": 0.5} for i in range(8)]
    (root / "boxes.json").write_text(json.dumps(boxes))
    job = make_job("pose", test_limit=3)
    assert evaluate(job).metrics == pytest.approx({"AP": 100, "AP50": 100, "AR": 100})
    assert not list(job.work_dir.glob(".limited*"))
    from downstream.pose import limited

    section = limited({**job.data, "root": str(root), "val_boxes": "boxes.json"}, 3, tmp_path)
    kept = [json.loads((tmp_path / name).read_text()) for name in ("annotations.json", "boxes.json")]
    assert {box["image_id"] for box in kept[1]} == {image["id"] for image in kept[0]["images"]}
    assert len(kept[1]) == 3
    assert section["val_boxes"] == str(tmp_path / "boxes.json")


def test_crowdpose_goes_through_its_own_metric(data, tmp_path, make_job):
    root = shutil.copytree(data / "coco", tmp_path / "crowd")
    for part in ("train", "val"):
        content = json.loads((root / f"{part}.json").read_text())
        content["categories"][0]["keypoints"] = [f"k{i}" for i in range(14)]
        for image in content["images"]:
            image["crowdIndex"] = 0.05 * image["id"]
        for person in content["annotations"]:
            person["keypoints"], person["num_keypoints"] = person["keypoints"][:42], 14
            del person["area"]  # CrowdPose has none
        (root / f"{part}.json").write_text(json.dumps(content))
    job = make_job("pose", lr=1e-3)
    found = evaluate(replace(job, data={**job.data, "root": str(root), "layout": "crowdpose"}))
    assert 0 <= found.metrics["AP"] <= 100
    with pytest.raises(TaskError, match="14 key points where the layout has 17"):
        evaluate(replace(job, data={**job.data, "root": str(root)}))


def test_leeds_sports_pose_counts_key_points_of_every_person(data, make_job):
    job = make_job("pose", lr=1e-3)
    lsp = replace(job, task="pose_lsp", data={**job.data, "layout": "lsp"})
    found = evaluate(lsp)
    assert set(found.metrics) == {"PCK", "AP", "AP50", "AR"}
    assert found.metrics["PCK"] == pytest.approx(np.mean(found.items["PCK"]))
    with pytest.raises(TaskError, match="leave out val_boxes"):
        evaluate(replace(lsp, data={**lsp.data, "val_boxes": "boxes.json"}))


def test_layers_are_named_in_order_and_lie_in_the_network(make_job):
    for layers in ([-1, -2], [1, -1], [0, 2], [-3]):
        with pytest.raises(TaskError, match="of the 2 blocks from 0 to 1"):
            evaluate(make_job("classification", layers=layers))
    with pytest.raises(TaskError, match="of the 2 blocks"):
        evaluate(make_job("depth", "finetune", lr=1e-3, out_indices=(2,)))


def test_upernet_reads_a_vit_without_its_final_norm(make_job, make_backbone):
    from downstream import segmentation

    folder = make_backbone("vit_tiny_patch16_224", {
        "img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 4, "num_heads": 2})
    job = make_job("segmentation", "finetune", folder=folder)
    chosen = {**engine.COMMON, **segmentation.DEFAULTS, "input_size": 32, **UPER}
    net = MODELS.build(segmentation.parts(job, chosen, 3)["backbone"])
    assert isinstance(net.net.norm, nn.Identity)


def test_vitpose_leaves_out_the_class_token_and_keeps_its_position(backbone):
    with_token, without = (TimmBackbone(backbone, class_token=kept) for kept in (True, False))
    assert without.net.cls_token is None
    x = torch.randn(2, 3, 32, 32)
    net = with_token.net
    patches = net.patch_embed(x).flatten(1, -2) + net.pos_embed[:, 1:] + net.pos_embed[:, :1]
    expected = net.norm(net.blocks(patches)).transpose(1, 2).unflatten(2, (4, 4))
    assert torch.allclose(without(x)[0], expected, atol=1e-5)
    assert not torch.allclose(without(x)[0], with_token(x)[0], atol=1e-3)
    assert without(torch.randn(2, 3, 64, 48))[0].shape == (2, 32, 8, 6)


def test_one_picture_cannot_choose_among_heads(make_job):
    with pytest.raises(TaskError, match="nothing is left of 1 to train on; raise train_limit"):
        evaluate(make_job("classification", train_limit=1))


def test_the_linear_segmentation_head_has_mmsegs_loss_and_nothing_else():
    from mmengine.structures import PixelData
    from mmseg.models.decode_heads.decode_head import BaseDecodeHead
    from mmseg.structures import SegDataSample

    with engine.quiet("mmseg"):
        from downstream.segmentation import IGNORE, LinearSegHead

        head = LinearSegHead(in_channels=4, channels=4, num_classes=5, ignore_index=IGNORE, dropout_ratio=0.0)
        logits = torch.randn(2, 5, 8, 8)
        labels = torch.randint(0, 5, (2, 1, 12, 20))
        labels[:, :, :3] = IGNORE
        samples = [SegDataSample(gt_sem_seg=PixelData(data=one)) for one in labels]
        found, theirs = head.loss_by_feat(logits, samples), BaseDecodeHead.loss_by_feat(head, logits, samples)
    assert set(theirs) - set(found) == {"acc_seg"}
    assert torch.equal(found["loss_ce"], theirs["loss_ce"])


@pytest.mark.parametrize("layout", ["coco", "crowdpose"])
def test_people_share_what_mmpose_copies_for_each(layout, make_job, monkeypatch):
    from mmpose.datasets.datasets.base import BaseCocoStyleDataset
    from mmpose.registry import DATASETS

    job = make_job("pose")
    with engine.quiet("mmpose"):
        from downstream.pose import _Labelled, dataset_of

        monkeypatch.setattr(_Labelled, "load_data_list", lambda self: [{"id": 1}])  # the fixture's people are COCO's
        people = DATASETS.build({**dataset_of({**job.data, "layout": layout}, "train", []), "serialize_data": False})
    ours, theirs = people.get_data_info(0), BaseCocoStyleDataset.get_data_info(people, 0)
    assert sorted(ours) == sorted(theirs)
    assert all(str(ours[name]) == str(theirs[name]) for name in theirs)
    assert ours["flip_pairs"] is people.get_data_info(0)["flip_pairs"]
