"""Every kind of backbone under every kind of student; docs/backbones.md is made from the same table."""

from pathlib import Path

import pytest
import torch

from objectives import recipe as recipes
from objectives.backbone import create_backbone, each_block, features, geometry_of, place, visible_of
from objectives.compatibility import BACKBONES, SIZE, markdown, refusal, size_of, table
from objectives.student import MaskTokenStudent, PooledStudent, VisibleStudent

VITS = [name for name in BACKBONES if "Swin" not in name]
ABSOLUTE_OR_ROTARY = [name for name in VITS if "relative" not in name]


def make(name):
    torch.manual_seed(0)
    return create_backbone(*BACKBONES[name]).eval()


@pytest.mark.parametrize("name", BACKBONES)
def test_an_unmasked_student_equals_timm(name):
    net, size = make(name), size_of(name)
    geometry = geometry_of(net, size)
    images = torch.randn(2, 3, size, size)
    expected = net.forward_features(images)
    if expected.ndim == 4:
        expected = expected.flatten(1, 2)
    tokens = MaskTokenStudent(net, geometry).eval()(images, None)
    assert torch.allclose(tokens, expected[:, expected.shape[1] - tokens.shape[1] :], atol=1e-5)
    assert PooledStudent(net, geometry).eval()(images, None).shape == (2, geometry.width)


@pytest.mark.parametrize("name", VITS)
def test_blocks_one_by_one_end_where_timm_ends(name):
    net = make(name)
    images = torch.randn(2, 3, SIZE, SIZE)
    tokens, places = place(net, net.patch_embed(images))
    after = list(each_block(net, tokens, places))
    assert len(after) == len(net.blocks)
    assert torch.allclose(net.norm(after[-1]), net.forward_features(images), atol=1e-5)


@pytest.mark.parametrize("name", ABSOLUTE_OR_ROTARY)
def test_hidden_patches_leave_no_trace_and_visible_ones_keep_their_places(name):
    net = make(name)
    geometry = geometry_of(net, SIZE)
    images = torch.randn(2, 3, SIZE, SIZE)
    count = geometry.grid**2
    mask = torch.stack([torch.arange(count) % 2 == 0, torch.arange(count) % 2 == 1])
    hidden = mask.view(2, 1, geometry.grid, geometry.grid)
    hidden = hidden.repeat_interleave(geometry.stride, 2).repeat_interleave(geometry.stride, 3)
    student = VisibleStudent(net, geometry).eval()
    seen = student(images, mask)
    assert torch.equal(seen, student(torch.where(hidden, torch.randn_like(images), images), mask))
    # nothing hidden: the same as the whole picture, so that places are those of the patches
    tokens, places = place(net, net.patch_embed(images))
    kept = features(net, *visible_of(net, tokens, places, torch.arange(count).expand(2, -1)))
    assert torch.allclose(kept, net.forward_features(images), atol=1e-5)


@pytest.mark.parametrize(("objective", "backbone", "reason"), [
    ("milan", "ViT, rotary", "a class token and no registers"),  # one prefix token, which is a register
    ("milan", "ViT, registers", "a class token and no registers"),
    ("milan", "ViT, no class token", "a class token and no registers"), ("milan", "ViT, class token", ""),
    ("dino", "Swin", "take no crops"), ("dino", "Swin V2", "take no crops"), ("moco_v3", "Swin", ""),
])
def test_pairs_that_only_seem_to_work_are_refused(objective, backbone, reason):
    found = refusal(objective, backbone)
    assert reason in found
    assert bool(found) == bool(reason)


@pytest.mark.slow
def test_the_documented_table_is_what_works():
    found = table()
    for name, row in found.items():
        assert row["ViT, class token"] == "", (name, row)
    for name in ("maskdistill", "simmim", "simmim_v2", "maskfeat", "eva", "zoomed_in", "supervised"):
        assert not any(found[name].values()), found[name]
    assert all("visible tokens" in found["mae"][name] for name in BACKBONES if "Swin" in name or "relative" in name)
    assert set(found) == {name for name, recipe in recipes.recipes().items() if recipe.trains}
    document = Path(__file__).parents[2] / "docs" / "backbones.md"
    assert document.read_text() == markdown(found), "run `python docs/make.py --backbones`"
