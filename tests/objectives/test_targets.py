"""Targets, heads and losses of SimMIM v2, MaskFeat, data2vec, EVA, MILAN and sparse MaskDistill, by hand."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from objectives import recipe as recipes
from objectives.backbone import create_backbone
from objectives.corruption import masked_count
from objectives.ema import CentredTeacher, LayerAverage, MomentumTeacher, average_into, frozen_copy
from objectives.head import PromptingDecoder
from objectives.loss import Cosine
from objectives.normalisation import CellNorm, WindowNorm
from objectives.objective import Objective
from objectives.patches import patchify, unpatchify
from objectives.pretrain import build
from objectives.recipe import ObjectiveError
from objectives.registry import Geometry
from objectives.student import MaskTokenStudent
from objectives.teacher import HOG

KWARGS = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 4, "num_heads": 2}
VIT = Geometry(input_size=32, stride=8, hierarchical=False, width=32)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


# --- SimMIM v2: the sliding window ------------------------------------------------------------------------------------


def windowed(picture, window, eps):
    """Each value against those of its window that lie in the picture (3, S, S)."""
    side, reach, out = picture.shape[-1], window // 2, np.zeros_like(picture)
    for channel in range(3):
        for row in range(side):
            for column in range(side):
                near = picture[
                    channel, max(0, row - reach) : row + reach + 1, max(0, column - reach) : column + reach + 1
                ]
                value = picture[channel, row, column] - near.mean()
                out[channel, row, column] = value / math.sqrt(near.var(ddof=1) + eps)
    return out


@pytest.mark.parametrize("mean", [0.0, 20.0])
@pytest.mark.parametrize(("size", "patch", "share"), [(24, 8, 47 / 192), (16, 4, 0.5), (12, 4, 0.9), (16, 8, 0.01)])
def test_window_norm_equals_the_naive_loop(size, patch, share, mean):
    norm = WindowNorm(share=share)
    images = mean + torch.randn(2, 3, size, size, generator=generator())
    got = unpatchify(norm(patchify(images, patch)), patch)
    for picture, value in zip(images, got, strict=True):
        expected = windowed(picture.double().numpy(), norm.window(size), 1e-6)
        assert np.abs(value.numpy() - expected).max() < (1e-5 if mean == 0 else 1e-4)


@pytest.mark.parametrize(("size", "window"), [(192, 47), (224, 55), (96, 23), (32, 7), (8, 3)])
def test_window_keeps_its_share_of_the_picture(size, window):
    assert WindowNorm().window(size) == window


def test_window_norm_of_a_constant_is_zero():
    tokens = patchify(torch.full((1, 3, 32, 32), 2.5), 8)
    assert WindowNorm()(tokens).abs().max() < 1e-2  # rounding of 1e-6 over eps' root, 1e-3


@pytest.mark.slow
def test_simmim_v2_predicts_window_normalised_pixels(make_job, pictures):
    swin = {"img_size": 64, "window_size": 4, "embed_dim": 16, "depths": (1, 1, 1, 1), "num_heads": (1, 2, 4, 8)}
    objective = build(
        make_job("simmim_v2", model="swinv2_tiny_window8_256", kwargs=swin, input_size=64), pictures
    ).eval()
    objective.begin_step(0, 0)
    with torch.no_grad():
        parts = objective(pictures.images[:2], pictures.labels[:2], torch.arange(2), mode="tensor")
        objective.begin_step(0, 0)
        loss = objective(pictures.images[:2], pictures.labels[:2], torch.arange(2))["loss"]
    assert parts["mask"].sum(1).tolist() == [3, 3]  # ceil(.6 x 4)
    expected = np.stack([windowed(p, 15, 1e-6) for p in parts["clean"].double().numpy()])
    exact = unpatchify(objective.normalisation(parts["raw"].double()), 32)
    assert np.abs(exact.numpy() - expected).max() < 1e-7
    rounding = np.abs(unpatchify(parts["target"], 32).numpy() - expected)
    assert rounding.max() < 0.05  # where the picture is almost flat, beside eps, in fp32
    assert rounding.mean() < 1e-4
    difference = (parts["prediction"] - parts["target"]).abs()
    assert loss.item() == pytest.approx(difference[parts["mask"]].mean().item(), rel=1e-5)


# --- MaskFeat: histograms ---------------------------------------------------------------------------------------------


def histograms(picture, bins, cell):
    """(3, S, S) -> (3, bins, S / cell, S / cell), mirror without the edge pixel, unsigned orientations."""
    side = picture.shape[-1]
    padded = np.pad(picture, ((0, 0), (1, 1), (1, 1)), mode="reflect")
    out = np.zeros((3, bins, side // cell, side // cell))
    for channel in range(3):
        for row in range(side):
            for column in range(side):
                n = padded[channel, row : row + 3, column : column + 3]
                gx = n[0, 0] + 2 * n[1, 0] + n[2, 0] - n[0, 2] - 2 * n[1, 2] - n[2, 2]
                gy = n[0, 0] + 2 * n[0, 1] + n[0, 2] - n[2, 0] - 2 * n[2, 1] - n[2, 2]
                where = math.floor(math.atan2(gx, gy) / math.pi * bins) % bins
                out[channel, where, row // cell, column // cell] += math.hypot(gx, gy)
    return out


@pytest.mark.parametrize("cell", [None, 2, 8])
def test_hog_equals_the_slow_one_in_its_order(cell):
    teacher, images = HOG(VIT, cell=cell), torch.randn(1, 3, 32, 32, generator=generator())
    size = cell or 4
    target, slow = teacher(images, None), histograms(images[0].double().numpy(), 9, size)
    cells = 8 // size
    assert target.shape == (1, 16, 27 * cells**2) == (1, 16, teacher.width)
    unit = CellNorm(9)(target)
    lengths = np.sqrt((slow**2).sum(1, keepdims=True))
    for token in range(16):
        y, x = (cells * place for place in divmod(token, 4))
        for got, expected in ((target, slow), (unit, slow / lengths)):
            block = expected[:, :, y : y + cells, x : x + cells]
            assert np.abs(got[0, token].view(3, 9, cells, cells).numpy() - block).max() < 1e-3


def test_hog_of_stripes_has_one_orientation():
    ramp = torch.arange(32.0).expand(1, 3, 32, 32)
    one = HOG(VIT)(ramp, None).view(16, 3, 9, 4)
    assert torch.count_nonzero(one.sum((0, 1, 3))) == 1
    other = HOG(VIT)(ramp.transpose(2, 3), None).view(16, 3, 9, 4)
    assert one.sum((0, 1, 3)).argmax() != other.sum((0, 1, 3)).argmax()
    assert CellNorm(9)(torch.zeros(1, 16, 108)).abs().max() == 0  # a flat cell stays zero


# --- data2vec: the moving average -------------------------------------------------------------------------------------


@pytest.fixture
def student():
    torch.manual_seed(0)
    return MaskTokenStudent(create_backbone("vit_tiny_patch16_224", KWARGS), VIT)


@pytest.mark.parametrize(("share", "last"), [(0.5, 2), (0.01, 1), (1.0, 4)])
def test_data2vec_target_is_the_mean_of_normalised_last_blocks(student, share, last):
    teacher = LayerAverage(VIT, share=share)
    teacher.attach(student, None, 100)
    images, outputs = torch.randn(2, 3, 32, 32), []
    hooks = [b.register_forward_hook(lambda m, i, out: outputs.append(out.detach())) for b in student.backbone.blocks]
    with torch.no_grad():
        student.eval()(images, None)
    for hook in hooks:
        hook.remove()
    expected = 0
    for out in outputs[4 - last :]:
        tokens = out[:, 1:].double()
        centred = tokens - tokens.mean(-1, keepdim=True)
        expected = expected + centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() / last
    target = teacher(images, None)
    assert target.shape == (2, 16, 32)
    assert (target - expected).abs().max() < 1e-5
    assert not target.requires_grad


def test_data2vec_averages_half_of_the_blocks_and_normalises_again(make_job, pictures):
    objective = build(make_job("data2vec", kwargs=KWARGS), pictures).eval()
    objective.attach(10)
    objective.begin_step(0, 0)
    parts = objective(pictures.images[:3], pictures.labels[:3], torch.arange(3), mode="tensor")
    assert torch.allclose(parts["target"].mean(-1), torch.zeros(3, 16), atol=1e-5)
    assert torch.allclose(parts["target"].var(-1, unbiased=False), torch.ones(3, 16), atol=1e-3)
    objective.begin_step(0, 0)
    loss = objective(pictures.images[:3], pictures.labels[:3], torch.arange(3))["loss"]
    d = (parts["prediction"] - parts["target"]).abs()[parts["mask"]]
    by_hand = torch.where(d < 2, d * d / 4, d - 1).mean()  # beta = 2
    assert loss.item() == pytest.approx(by_hand.item(), rel=1e-5)
    assert parts["mask"].sum(1).tolist() == [9, 9, 9]  # int(16 x 120 / 196)


def test_moving_average_by_hand():
    mine, its = (torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2)) for _ in range(2))
    torch.nn.init.constant_(its[1].running_mean, 3.0)
    before, target = ({k: v.clone() for k, v in m.state_dict().items()} for m in (mine, its))
    average_into(mine, its, 0.75)
    for key, value in mine.named_parameters():
        assert torch.allclose(value, 0.75 * before[key] + 0.25 * target[key])
    for key, value in mine.named_buffers():
        assert torch.equal(value, target[key])
    assert all(torch.equal(v, target[k]) for k, v in its.state_dict().items())


def test_data2vec_teacher_follows_the_student_and_is_none_of_it(student):
    teacher = LayerAverage(VIT, momentum=0.9)
    teacher.attach(student, None, 10)
    start = student.backbone.blocks[0].mlp.fc1.weight.detach().clone()
    with torch.no_grad():
        for weight in student.backbone.parameters():
            weight.add_(1)
    followed = teacher.network.blocks[0].mlp.fc1.weight
    assert torch.equal(followed, start)
    for step in (1, 2):
        teacher.update(student, None, step)
        assert torch.allclose(followed, start + 1 - 0.9**step, atol=1e-6)
    teacher.train()
    assert not any(module.training for module in teacher.network.modules())
    assert not any(p.requires_grad for p in teacher.parameters())
    copy = frozen_copy(student.backbone.train())
    assert not copy.training
    assert student.backbone.training


@pytest.mark.parametrize("made", [LayerAverage, MomentumTeacher, CentredTeacher])
@pytest.mark.parametrize("momentum", [-0.1, 1.1, float("nan")])
def test_a_momentum_that_is_none_is_refused(made, momentum):
    with pytest.raises(ObjectiveError, match=r"objective\.teacher\.momentum: .* must lie between 0 and 1"):
        made(VIT, momentum=momentum)


@pytest.mark.parametrize("share", [0, -1, 6])
def test_a_share_of_the_blocks_that_is_none_is_refused(share):
    with pytest.raises(ObjectiveError, match=r"objective\.teacher\.share"):
        LayerAverage(VIT, share=share)


def test_a_norm_over_other_bins_than_the_histograms_is_refused():
    """18 values in groups of 9 would fit, and be another target."""
    recipe = recipes.get("maskfeat")
    slots = {**recipe.slots(), "teacher": {"type": "HOG", "bins": 18}}
    kwargs = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 2}
    with pytest.raises(ObjectiveError, match=r"set it to objective\.teacher\.bins"):
        Objective(slots, "vit_tiny_patch16_224", kwargs, 32, recipe.crop, True)
    slots["normalisation"] = {"type": "CellNorm", "bins": 18}
    Objective(slots, "vit_tiny_patch16_224", kwargs, 32, recipe.crop, True)


def test_data2vec_refuses_a_swin():
    with pytest.raises(ObjectiveError, match="LayerAverage"):
        LayerAverage(Geometry(64, 32, True, 128))


# --- EVA, MILAN, sparse MaskDistill -----------------------------------------------------------------------------------


def parts_and_loss(objective, pictures, count=3):
    objective.eval()
    out = []
    for mode in ("tensor", "loss"):
        objective.begin_step(0, 0)
        with torch.no_grad():
            out.append(objective(pictures.images[:count], pictures.labels[:count], torch.arange(count), mode=mode))
    return out[0], out[1]["loss"].item()


def cosines(a, b):
    a, b = a.double(), b.double()
    return (a * b).sum(-1) / (a.square().sum(-1) * b.square().sum(-1)).sqrt()


def test_eva_compares_directions_at_hidden_tokens(make_job, pictures):
    parts, loss = parts_and_loss(build(make_job("eva"), pictures), pictures)
    expected = (2 - 2 * cosines(parts["prediction"], parts["raw"]))[parts["mask"]].mean()
    assert loss == pytest.approx(expected.item(), abs=1e-5)
    assert parts["mask"].sum(1).tolist() == [6, 6, 6]  # int(16 x 105 / 256)
    assert torch.allclose(parts["target"].norm(dim=-1), torch.ones(3, 16), atol=1e-5)


def test_cosine_lies_between_zero_and_four_and_ignores_length():
    target = torch.randn(2, 5, 8)
    loss = Cosine("all")
    for factor, value in ((1, 0), (7, 0), (-2, 4)):
        assert loss(factor * target, target, None).item() == pytest.approx(value, abs=1e-5)
    assert loss(torch.tensor([[[1.0, 0]]]), torch.tensor([[[0, 5.0]]]), None) == 2


def test_milan_predicts_all_tokens_from_those_that_are_attended_to(make_job, pictures):
    objective = build(make_job("milan"), pictures)
    parts, loss = parts_and_loss(objective, pictures)
    assert parts["mask"].sum(1).tolist() == [12, 12, 12]
    assert parts["prediction"].shape == parts["raw"].shape == (3, 17, 112)
    expected = (2 - 2 * cosines(parts["prediction"], parts["raw"])).mean()  # hidden, visible and summary tokens
    assert loss == pytest.approx(expected.item(), abs=1e-5)
    assert torch.allclose(parts["raw"][:, 0], parts["raw"][:, 1:].mean(1), atol=1e-5)
    attention = objective.teacher.attention(parts["raw"])
    assert attention.shape == (3, 16)
    assert torch.allclose(attention.sum(1), torch.ones(3), atol=1e-5)


def test_prompting_decoder_leaves_what_the_student_saw():
    torch.manual_seed(0)
    decoder = PromptingDecoder(VIT, 10, width=16, depth=2, heads=2).eval()
    mask = torch.zeros(2, 16, dtype=torch.bool)
    mask[0, ::4] = mask[1, 3:7] = True
    tokens = torch.randn(2, 1 + 12, 32)
    with torch.no_grad():
        out = decoder(tokens, mask)
        seen = decoder.embed(tokens)
        seen[:, 1:] += torch.stack([decoder.positions[~m] for m in mask])
        plain = decoder.predict(decoder.norm(seen))  # no block between
        assert torch.allclose(out[:, 0], plain[:, 0], atol=1e-6)
        for b in range(2):
            assert torch.allclose(out[b, 1:][~mask[b]], plain[b, 1:], atol=1e-6)
        decoder.mask_token.add_(1)
        changed = decoder(tokens, mask)
    same = (changed == out).all(-1)
    assert torch.equal(~same[:, 1:], mask)
    assert same[:, 0].all()


@pytest.mark.parametrize("mask", [None, torch.zeros(2, 16, dtype=torch.bool).index_fill(1, torch.arange(4), True)])
def test_prompting_decoder_needs_a_mask_and_visible_tokens(mask):
    with pytest.raises(ObjectiveError, match="PromptingDecoder needs"):
        PromptingDecoder(VIT, 10, width=16, depth=1, heads=2)(torch.randn(2, 16, 32), mask)


def test_sparse_maskdistill_decodes_hidden_tokens(make_job, pictures):
    objective = build(make_job("maskdistill_sparse"), pictures)
    parts, loss = parts_and_loss(objective, pictures)
    mask, raw = parts["mask"], parts["raw"].double()
    assert mask.sum(1).tolist() == [12, 12, 12]
    target = (raw - raw.mean(-1, keepdim=True)) / (raw.var(-1, keepdim=True, unbiased=False) + 1e-6).sqrt()
    d = (parts["prediction"] - target).abs()[mask]
    assert loss == pytest.approx(torch.where(d < 2, d * d / 4, d - 1).mean().item(), rel=1e-5)
    assert torch.allclose(parts["raw"], objective.teacher(parts["clean"], None))  # of the whole picture
    tokens = objective.student(parts["corrupted"], mask)
    assert tokens.shape == (3, 1 + 4, 32)


# --- counts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "grid", "count"),
    [("maskfeat", 14, 78), ("data2vec", 14, 120), ("eva", 16, 105), ("mvp", 14, 75), ("maskdistill", 14, 78),
     ("maskdistill_sparse", 14, 147), ("milan", 14, 147), ("simmim_v2", 6, 22)],
)
def test_recipes_hide_the_papers_number_at_the_papers_size(name, grid, count):
    from objectives.registry import build as part

    geometry = Geometry(grid * 16, 16, name == "simmim_v2", 32)
    assert part("corruption", recipes.get(name).corruption, geometry=geometry).hidden == count


@settings(max_examples=200, deadline=None)
@given(grid=st.integers(2, 32), data=st.data())
def test_a_ratio_of_whole_patches_hides_as_many(grid, data):
    count = data.draw(st.integers(1, grid**2 - 1))
    assert masked_count(grid**2, count / grid**2, "floor") == count
