"""Weights from elsewhere: every official layout's names and shapes, at tiny sizes, into timm's and back."""

import argparse
import json
import re
from collections import OrderedDict

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from downstream.backbone import TimmBackbone, WeightsError
from downstream.weights import names
from downstream.weights.convert import convert, from_file, with_pixels
from downstream.weights.export import export
from downstream.weights.layouts import HALF, LAYOUTS, recognised
from downstream.weights.read import read_state

WIDTH, DEPTH, HEADS, PATCH, GRID = 32, 2, 2, 8, 4
SIZE = PATCH * GRID


def draw(**shapes):
    """A state dict of random tensors: name -> shape, dots written as __."""
    return {name.replace("__", "."): torch.randn(shape) * 0.1 for name, shape in shapes.items()}


def stem(prefix="", positions=1 + GRID**2):
    state = draw(cls_token=(1, 1, WIDTH), patch_embed__proj__weight=(WIDTH, 3, PATCH, PATCH),
                 patch_embed__proj__bias=(WIDTH,), norm__weight=(WIDTH,), norm__bias=(WIDTH,))
    if positions:
        state |= draw(pos_embed=(1, positions, WIDTH))
    return {prefix + key: value for key, value in state.items()}


def block(prefix, qkv="bias", hidden=4 * WIDTH):
    """One transformer block in the names that MAE, DINO, MoCo v3, BEiT and DINOv2 share."""
    state = draw(
        norm1__weight=(WIDTH,), norm1__bias=(WIDTH,), norm2__weight=(WIDTH,), norm2__bias=(WIDTH,),
        attn__qkv__weight=(3 * WIDTH, WIDTH), attn__proj__weight=(WIDTH, WIDTH), attn__proj__bias=(WIDTH,),
        mlp__fc1__weight=(hidden, WIDTH), mlp__fc1__bias=(hidden,), mlp__fc2__weight=(WIDTH, hidden),
        mlp__fc2__bias=(WIDTH,),
    )
    state |= draw(attn__qkv__bias=(3 * WIDTH,)) if qkv == "bias" else draw(attn__q_bias=(WIDTH,), attn__v_bias=(WIDTH,))
    return {prefix + key: value for key, value in state.items()}


def plain(prefix=""):
    state = stem(prefix)
    for i in range(DEPTH):
        state |= block(f"{prefix}blocks.{i}.")
    return state


def mae():
    return {"model": plain() | draw(
        mask_token=(1, 1, 16), decoder_pos_embed=(1, 17, 16), decoder_embed__weight=(16, WIDTH),
        decoder_blocks__0__attn__qkv__weight=(48, 16), decoder_norm__weight=(16,), decoder_pred__weight=(192, 16),
    ), "epoch": 3, "args": argparse.Namespace(lr=1.0)}


def moco():
    state = plain("module.base_encoder.") | draw(module__base_encoder__head__0__weight=(64, WIDTH))
    state |= plain("module.momentum_encoder.") | draw(module__predictor__0__weight=(8, 8))
    return {"arch": "vit_small", "state_dict": state}


def dino():
    student, teacher = plain("module.backbone."), plain("backbone.")
    return {"student": student | draw(module__head__mlp__0__weight=(8, WIDTH)),
            "teacher": teacher | draw(head__mlp__0__weight=(8, WIDTH), head__last_layer__weight_v=(9, 8))}


def dinov2(registers=0, chunked=False, gated=False):
    state = stem() | draw(mask_token=(1, WIDTH))
    if registers:
        state |= draw(register_tokens=(1, registers, WIDTH))
    for i in range(DEPTH):
        prefix = f"blocks.{i}.{i}." if chunked else f"blocks.{i}."
        state |= block(prefix)
        state |= {f"{prefix}ls{n}.gamma": torch.randn(WIDTH) for n in (1, 2)}
        if gated:
            state = {key: value for key, value in state.items() if ".fc" not in key}
    if gated:
        for i in range(DEPTH):
            mlp = draw(w12__weight=(96, WIDTH), w12__bias=(96,), w3__weight=(WIDTH, 48), w3__bias=(WIDTH,))
            state |= {f"blocks.{i}.mlp.{key}": value for key, value in mlp.items()}
    if chunked:
        return {"teacher": {f"backbone.{k}": v for k, v in state.items()} | draw(dino_head__mlp__0__weight=(4, 4))}
    return state


def beit(shared=True, prefix="", second=False):
    state = {prefix + key: value for key, value in stem(positions=0).items()}
    table = ((2 * GRID - 1) ** 2 + 3, HEADS)
    for i in range(DEPTH):
        state |= block(f"{prefix}blocks.{i}.", qkv="separate")
        state |= {f"{prefix}blocks.{i}.gamma_{n}": torch.randn(WIDTH) for n in (1, 2)}
        if not shared:
            state[f"{prefix}blocks.{i}.attn.relative_position_bias_table"] = torch.randn(table)
            state[f"{prefix}blocks.{i}.attn.relative_position_index"] = torch.zeros(17, 17).long()
    if shared:
        state[f"{prefix}rel_pos_bias.relative_position_bias_table"] = torch.randn(table)
        state[f"{prefix}rel_pos_bias.relative_position_index"] = torch.zeros(17, 17).long()
    state[f"{prefix}mask_token"] = torch.zeros(1, 1, WIDTH)
    if not prefix:
        state |= draw(lm_head__weight=(16, WIDTH), lm_head__bias=(16,))
    if second:
        state |= block("cls_pt_layers.0.", qkv="separate")
    return {"model": state}


def coordinates(window, pretrained):
    """Swin V2's table (1, 2w - 1, 2w - 1, 2) of a window that was ``pretrained`` before, by the paper's formula."""
    axis = torch.arange(1.0 - window, window) / (pretrained - 1) * 8
    axis = axis.sign() * (axis.abs() + 1).log2() / 3
    return torch.stack(torch.meshgrid(axis, axis, indexing="ij"), -1)[None]


def swin(version=1, prefix="", rpe="cpb_mlp", buffers=True, pretrained=4):
    """Two stages of two blocks: 32 px, patch 4, windows 4 and 4 (the last map is one window)."""
    state = draw(patch_embed__proj__weight=(16, 3, 4, 4), patch_embed__proj__bias=(16,),
                 patch_embed__norm__weight=(16,), patch_embed__norm__bias=(16,), norm__weight=(32,), norm__bias=(32,))
    merged = 64 if version == 1 else 32
    state |= draw(layers__0__downsample__reduction__weight=(32, 64), layers__0__downsample__norm__weight=(merged,),
                  layers__0__downsample__norm__bias=(merged,))
    for stage, width, heads in ((0, 16, 2), (1, 32, 4)):
        for i in range(2):
            p = f"layers.{stage}.blocks.{i}."
            own = {"norm1.weight": (width,), "norm1.bias": (width,), "norm2.weight": (width,), "norm2.bias": (width,),
                   "attn.qkv.weight": (3 * width, width), "attn.proj.weight": (width, width),
                   "attn.proj.bias": (width,), "mlp.fc1.weight": (4 * width, width), "mlp.fc1.bias": (4 * width,),
                   "mlp.fc2.weight": (width, 4 * width), "mlp.fc2.bias": (width,)}
            if version == 1:
                own |= {"attn.qkv.bias": (3 * width,), "attn.relative_position_bias_table": (49, heads)}
            else:
                own |= {"attn.q_bias": (width,), "attn.v_bias": (width,), "attn.logit_scale": (heads, 1, 1),
                        f"attn.{rpe}.0.weight": (512, 2), f"attn.{rpe}.0.bias": (512,),
                        f"attn.{rpe}.2.weight": (heads, 512)}
            if buffers:
                own |= {"attn.relative_position_index": (16, 16)}
                own |= {"attn_mask": (4, 16, 16)} if stage == 0 and i == 1 else {}
            state |= {p + key: torch.randn(shape) * 0.1 for key, shape in own.items()}
            if version == 2 and buffers:
                state[f"{p}attn.relative_coords_table"] = coordinates(4, pretrained)
    state = {prefix + key: value for key, value in state.items()}
    if prefix:
        state |= {"encoder.mask_token": torch.zeros(1, 1, 16), "decoder.0.weight": torch.zeros(192, 32, 1, 1)}
    return {"model": state}


@pytest.fixture
def keep(tmp_path):
    """Writes a checkpoint: ``keep(content, name)`` -> path."""

    def write(content, name="weights.pth"):
        torch.save(content, tmp_path / name)
        return tmp_path / name

    return write


LAYOUT_CASES = {
    "mae": ("mae", mae), "moco_v3": ("moco_v3", moco), "dino": ("dino", dino), "dinov2": ("dinov2", dinov2),
    "dinov2 registers": ("dinov2", lambda: dinov2(registers=4)),
    "dinov2 chunks": ("dinov2", lambda: dinov2(chunked=True)),
    "dinov2 gated": ("dinov2", lambda: dinov2(gated=True)), "beit": ("beit", beit),
    "beitv2": ("beitv2", lambda: beit(second=True)), "simmim vit": ("simmim", lambda: beit(prefix="encoder.")),
    "simmim swin": ("simmim", lambda: swin(prefix="encoder.")),
    "simmim swin v2": ("simmim", lambda: swin(2, "encoder.", "rpe_mlp")), "swin": ("swin", swin),
    "swin v2": ("swin", lambda: swin(2)), "timm": ("timm", plain),
}


@pytest.mark.parametrize("case", LAYOUT_CASES)
def test_official_files_are_recognised_and_fit_to_the_last_key(case, keep):
    layout, make = LAYOUT_CASES[case]
    converted = from_file(keep(make()), heads=HEADS)
    assert converted.source["layout"] == layout
    net = timm.create_model(converted.model, **converted.kwargs, num_classes=0)
    net.load_state_dict(converted.network.state_dict(), strict=True)
    assert converted.input_size == 32
    assert torch.isfinite(net.eval().forward_features(torch.randn(1, 3, 32, 32))).all()


def rename_free(state, prefix=""):
    """The part of a file whose names are timm's already."""
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


@pytest.mark.parametrize(("make", "prefix"), [
    (lambda: (c := mae(), c["model"]), ""), (lambda: (c := dino(), c["teacher"]), "backbone."),
    (lambda: (c := moco(), c["state_dict"]), "module.base_encoder."), (lambda: (c := plain(), c), ""),
])
def test_every_value_of_the_encoder_arrives_unchanged(make, prefix, keep):
    content, theirs = make()
    got = from_file(keep(content), heads=HEADS).network.state_dict()
    theirs = rename_free(theirs, prefix)
    assert len(got) == 5 + 1 + 12 * DEPTH
    assert all(torch.equal(got[key], theirs[key]) for key in got)


def test_mae_encoder_output_equals_its_definition(keep):
    """Pre-norm blocks with the published eps, written out: patches + places, class token first, final norm."""
    content = mae()
    w = {key: value.double() for key, value in content["model"].items()}
    images = torch.randn(2, 3, SIZE, SIZE)

    def norm(x, name):
        return torch.nn.functional.layer_norm(x, (WIDTH,), w[f"{name}.weight"], w[f"{name}.bias"], 1e-6)

    def linear(x, name):
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    cut = images.double().unfold(2, PATCH, PATCH).unfold(3, PATCH, PATCH)  # (B, 3, G, G, P, P)
    cut = cut.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)
    x = cut @ w["patch_embed.proj.weight"].flatten(1).T + w["patch_embed.proj.bias"] + w["pos_embed"][:, 1:]
    x = torch.cat([(w["cls_token"] + w["pos_embed"][:, :1]).expand(2, -1, -1), x], 1)
    for i in range(DEPTH):
        q, k, v = linear(norm(x, f"blocks.{i}.norm1"), f"blocks.{i}.attn.qkv").view(2, 17, 3, HEADS, 16).permute(
            2, 0, 3, 1, 4)
        attention = (q @ k.transpose(-2, -1) / 4).softmax(-1) @ v
        x = x + linear(attention.transpose(1, 2).reshape(2, 17, WIDTH), f"blocks.{i}.attn.proj")
        hidden = torch.nn.functional.gelu(linear(norm(x, f"blocks.{i}.norm2"), f"blocks.{i}.mlp.fc1"))
        x = x + linear(hidden, f"blocks.{i}.mlp.fc2")
    net = from_file(keep(content), heads=HEADS).network.eval()
    assert torch.allclose(net.forward_features(images), norm(x, "norm").float(), atol=1e-5)


def test_beit_keeps_separate_biases_its_table_and_its_pixels(keep):
    content = beit(shared=False)
    theirs = content["model"]
    net = from_file(keep(content)).network.eval()
    got = net.state_dict()
    for i in range(DEPTH):
        for name in ("q_bias", "v_bias", "relative_position_bias_table", "qkv.weight"):
            assert torch.equal(got[f"blocks.{i}.attn.{name}"], theirs[f"blocks.{i}.attn.{name}"])
    # the same picture, normalised as BEiT did and as the suite does, gives the same patch embeddings
    picture = torch.rand(1, 3, SIZE, SIZE)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    expected = torch.nn.functional.conv2d(
        (picture - 0.5) / 0.5, theirs["patch_embed.proj.weight"], theirs["patch_embed.proj.bias"], stride=PATCH)
    assert torch.allclose(net.patch_embed((picture - mean) / std), expected.flatten(2).transpose(1, 2), atol=1e-5)


def test_pixels_go_into_the_positions_where_the_patch_embedding_has_no_bias():
    net = timm.create_model("vit_tiny_patch16_224", img_size=SIZE, patch_size=PATCH, embed_dim=WIDTH, depth=1,
                            num_heads=HEADS, pre_norm=True, num_classes=0).eval()
    picture = torch.rand(1, 3, SIZE, SIZE)
    expected = net.forward_features((picture - 0.5) / 0.5)
    net.load_state_dict(with_pixels(net.state_dict(), HALF))
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    assert torch.allclose(net.forward_features((picture - mean) / std), expected, atol=1e-4)


def test_dinov2_registers_take_no_place(keep):
    content = dinov2(registers=4)
    got = from_file(keep(content), heads=HEADS).network.state_dict()
    assert torch.equal(got["cls_token"], content["cls_token"] + content["pos_embed"][:, :1])
    assert torch.equal(got["pos_embed"], content["pos_embed"][:, 1:])
    assert torch.equal(got["reg_token"], content["register_tokens"])


def test_dinov2_gated_mlp_equals_its_definition(keep):
    content = dinov2(gated=True)
    net = from_file(keep(content), heads=HEADS).network.eval()
    x = torch.randn(3, WIDTH)
    w = {key.removeprefix("blocks.1.mlp."): value for key, value in content.items() if key.startswith("blocks.1.mlp.")}
    gate, value = (x @ w["w12.weight"].T + w["w12.bias"]).chunk(2, -1)
    expected = (torch.nn.functional.silu(gate) * value) @ w["w3.weight"].T + w["w3.bias"]
    assert torch.allclose(net.blocks[1].mlp(x), expected, atol=1e-5)


def test_swin_merging_moves_to_the_next_stage_and_buffers_give_the_size(keep):
    content = swin()
    converted = from_file(keep(content))
    got = converted.network.state_dict()
    key = "downsample.reduction.weight"
    assert torch.equal(got[f"layers.1.{key}"], content["model"][f"layers.0.{key}"])
    assert converted.kwargs["window_size"] == [[4, 4], [4, 4]]
    bare = {k: v for k, v in content["model"].items() if "index" not in k and "mask" not in k}
    assert from_file(keep(bare)).kwargs == converted.kwargs


def test_a_square_of_patches_with_another_size_of_picture_is_interpolated(keep, tmp_path):
    for content, windows in ((beit(), (8, 8)), (swin(), (8, 8)), (swin(2), (8, 8))):
        converted = from_file(keep(content))
        save_file(converted.network.state_dict(), tmp_path / "backbone.safetensors")
        (tmp_path / "backbone.json").write_text(
            json.dumps({"format": 1, "model": converted.model, "kwargs": converted.kwargs}))
        module = TimmBackbone(tmp_path, input_size=64)
        net = module.net
        attention = net.blocks[0].attn if module.is_vit else net.layers[0].blocks[0].attn
        shared = getattr(net, "rel_pos_bias", None)
        assert tuple((shared or attention).window_size) == windows  # twice the picture, twice the window
        assert all(m.shape[0] == 1 for m in module(torch.randn(1, 3, 64, 64)))
        # a frozen backbone takes a second size (a tracker's template) by a network of its own
        small, native = module(images := torch.randn(1, 3, 32, 32)), TimmBackbone(tmp_path)(images)
        assert small[0].shape == native[0].shape


@pytest.mark.parametrize("pretrained", [2, 3, 4, 5])
def test_swin_v2_fine_tuned_at_another_window_keeps_its_coordinates(pretrained, keep):
    converted = from_file(keep(swin(2, pretrained=pretrained)))
    for stage in converted.network.layers:
        for each in stage.blocks:
            assert torch.allclose(each.attn.relative_coords_table, coordinates(4, pretrained), atol=1e-6)
    assert ("pretrained_window_sizes" in converted.kwargs) == (pretrained != 4)


def test_swin_v2_with_a_damaged_table_is_refused(keep):
    content = swin(2)
    content["model"]["layers.0.blocks.0.attn.relative_coords_table"] = torch.zeros(1, 7, 7, 2)
    with pytest.raises(WeightsError, match="holds no coordinates"):
        from_file(keep(content))


def test_swin_v2_coordinates_stay_relative_to_the_pretrained_window(keep, tmp_path):
    converted = from_file(keep(swin(2)))
    save_file(converted.network.state_dict(), tmp_path / "backbone.safetensors")
    about = {"format": 1, "model": converted.model, "kwargs": converted.kwargs}
    (tmp_path / "backbone.json").write_text(json.dumps(about))
    small, large = (TimmBackbone(tmp_path, input_size=size).net.layers[0].blocks[0].attn for size in (32, 64))
    # offsets of up to 3 are in both windows (of 4 and of 8): the same offset has the same coordinate
    assert torch.allclose(large.relative_coords_table[:, 4:11, 4:11], small.relative_coords_table)


def test_fine_tuned_files_keep_their_norm_behind_the_mean(keep):
    content = {k: v for k, v in plain().items() if not k.startswith("norm.")}
    content |= draw(fc_norm__weight=(WIDTH,), fc_norm__bias=(WIDTH,), head__weight=(5, WIDTH), head__bias=(5,))
    got = from_file(keep(content), heads=HEADS).network.state_dict()
    assert torch.equal(got["fc_norm.weight"], content["fc_norm.weight"])
    assert "norm.weight" not in got


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("change", "message"), [
    (lambda s: s.pop("blocks.1.mlp.fc2.bias"), r"blocks\.1\.mlp\.fc2\.bias missing"),
    (lambda s: s.pop("norm.weight"), r"norm\.weight missing"),
    (lambda s: s.update(draw(blocks__0__attn__extra=(3,))), r"blocks\.0\.attn\.extra unexpected"),
    (lambda s: s.update(draw(absolute_pos_embed=(1, 4, 8))), r"absolute_pos_embed unexpected"),
    (lambda s: s.update(draw(norm__weight=(7,))), r"norm\.weight has shape \(7,\) instead of \(32,\)"),
    (lambda s: s.update(draw(pos_embed=(1, 12, WIDTH))), r"pos_embed has 12 rows"),
    (lambda s: s.update(draw(patch_embed__proj__weight=(WIDTH, 1, 8, 8))), r"patch_embed\.proj\.weight has shape"),
    (lambda s: [s.pop(k) for k in list(s) if k.startswith("blocks.1.")] and s.update(block("blocks.2.")),
     r"blocks\.1\.\* missing"),
])
def test_a_weight_without_a_partner_is_named(change, message, keep):
    content = mae()
    change(content["model"])
    with pytest.raises(WeightsError, match=message) as caught:
        from_file(keep(content), heads=HEADS)
    assert "weights.pth" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_the_shapes_do_not_show_is_asked_for(keep):
    with pytest.raises(WeightsError, match="--heads"):
        from_file(keep(plain()))
    with pytest.raises(WeightsError, match="does not divide"):
        from_file(keep(plain()), heads=5)
    fine_tuned = beit(shared=False)["model"]
    for key in ("mask_token", "lm_head.weight", "lm_head.bias"):
        del fine_tuned[key]
    with pytest.raises(WeightsError, match="--layout"):
        from_file(keep(fine_tuned))
    assert from_file(keep(fine_tuned), layout="beitv2").source["mean"] != [0.5, 0.5, 0.5]
    with pytest.raises(WeightsError, match="timm:NAME=FILE"):
        from_file(keep(swin(2, buffers=False)))
    with pytest.raises(WeightsError, match="did you mean 'dinov2'"):
        from_file(keep(plain()), layout="dinov3")
    with pytest.raises(WeightsError, match="no known layout"):
        from_file(keep({"conv1.weight": torch.zeros(1)}))


class _Runs:
    def __reduce__(self):
        return (print, ("code of a file ran",))


def test_code_in_a_file_is_never_run(keep, capsys):
    with pytest.raises(WeightsError, match=r"never run .*print"):
        from_file(keep({"model": plain(), "args": _Runs()}))
    assert "code of a file ran" not in capsys.readouterr().out


@pytest.mark.parametrize("content", [[], {}, {"model": {"lr": 1.0}}, torch.zeros(3)])
def test_a_file_without_tensors_by_name_is_one_line(content, keep):
    with pytest.raises(WeightsError, match="no tensors by name"):
        from_file(keep(content))


def test_damaged_and_missing_files_are_one_line(tmp_path):
    (tmp_path / "half.pth").write_bytes(b"PK\x03\x04 half")
    (tmp_path / "half.safetensors").write_bytes(b"half")
    for name in ("half.pth", "half.safetensors", "no.pth"):
        with pytest.raises(WeightsError, match="no file" if name == "no.pth" else "cannot be read"):
            convert(str(tmp_path / name))


def test_settings_of_simmim_are_read_without_their_package(keep, monkeypatch, tmp_path):
    """A class of yacs in the file becomes a plain dictionary; yacs itself is not needed."""
    import sys
    import types

    module = types.ModuleType("yacs.config")
    module.CfgNode = type("CfgNode", (dict,), {"__module__": "yacs.config"})
    monkeypatch.setitem(sys.modules, "yacs", types.ModuleType("yacs"))
    monkeypatch.setitem(sys.modules, "yacs.config", module)
    node = module.CfgNode(MODEL=module.CfgNode(NAME="simmim"))
    node.__dict__["__immutable__"] = True
    path = keep({**swin(prefix="encoder."), "config": node})
    monkeypatch.delitem(sys.modules, "yacs.config")
    assert from_file(path).source["layout"] == "simmim"


def test_layouts_do_not_shadow_each_other(keep):
    for layout, make in LAYOUT_CASES.values():
        content = make()
        for room in ("teacher", "model", "state_dict"):
            content = content.get(room, content)
        state = OrderedDict((key.removeprefix("module."), value) for key, value in content.items())
        assert recognised(state) is LAYOUTS[layout]


# --- timm, patches, names ---------------------------------------------------------------------------------------------


def test_timm_by_name_with_a_file_takes_size_and_pixels(keep):
    net = timm.create_model("vit_tiny_patch16_224", img_size=96, num_classes=3, depth=12)
    converted = convert(f"timm:vit_tiny_patch16_224={keep(net.state_dict())}")
    assert converted.source["timm"] == "vit_tiny_patch16_224"
    got = converted.network.state_dict()
    assert got["pos_embed"].shape[1] == 197  # 6 x 6 places became 14 x 14
    assert torch.equal(got["blocks.3.attn.qkv.weight"], net.state_dict()["blocks.3.attn.qkv.weight"])
    assert converted.source["mean"] == list(timm.get_pretrained_cfg("vit_tiny_patch16_224").mean)
    with pytest.raises(WeightsError, match=r"timm has no model 'vit_tinny.*did you mean 'vit_"):
        convert("timm:vit_tinny_patch16_224")
    with pytest.raises(WeightsError, match="missing"):
        convert(f"timm:vit_tiny_patch16_224={keep(plain())}")
    for other in ("resnet10t", "mvitv2_tiny"):
        with pytest.raises(WeightsError, match="neither ViT nor Swin"):
            convert(f"timm:{other}={keep(plain())}")


def test_another_patch_keeps_the_grid(keep):
    converted = convert(str(keep(plain())), heads=HEADS, patch_size=4)
    assert (converted.input_size, converted.kwargs["patch_size"]) == (16, 4)
    flat = torch.ones(1, 3, 16, 16)
    whole = from_file(keep(plain()), heads=HEADS).network
    assert converted.network.patch_embed(flat).shape == whole.patch_embed(torch.ones(1, 3, 32, 32)).shape


@pytest.mark.parametrize("pairs", [names.MMPRETRAIN, names.TRANSFORMERS])
def test_names_lead_there_and_back(pairs):
    state = plain()
    there, left = names.to_theirs(names.split_qkv(state) if pairs is names.TRANSFORMERS else state, pairs)
    assert left == []
    back = names.join_qkv(names.to_timm(there, pairs))
    assert back.keys() == state.keys()
    assert all(torch.equal(back[key], state[key]) for key in state)


# --- export -----------------------------------------------------------------------------------------------------------


def run_snippet(text, name):
    """What the printed snippet assigns to ``name``."""
    room = {}
    exec(text, room)
    return room[name]


VIT = ("vit_tiny_patch16_224", {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2})
SWIN = ("swin_tiny_patch4_window7_224", {
    "img_size": 64, "window_size": 4, "embed_dim": 16, "depths": [1, 1, 1, 1], "num_heads": [1, 2, 4, 8]})


@pytest.mark.parametrize("kind", [VIT, SWIN, (VIT[0], {**VIT[1], "init_values": 0.1, "class_token": False,
                                                       "global_pool": "avg", "fc_norm": False})])
def test_exported_to_timm_gives_the_same_output(kind, make_backbone, tmp_path):
    folder = make_backbone(*kind)
    net = run_snippet(export(folder, "timm", tmp_path / "out"), "net").eval()
    size = kind[1]["img_size"]
    images = torch.randn(2, 3, size, size)
    expected = convert(str(folder)).network.eval().forward_features(images)
    assert torch.equal(net.forward_features(images), expected)
    local = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    assert torch.equal(local.forward_features(images), expected)


@pytest.mark.parametrize("more", [{}, {"init_values": 0.1}])
def test_exported_to_mmpretrain_gives_the_same_output(more, make_backbone, tmp_path):
    import mmpretrain.models  # noqa: F401
    from mmengine.registry import MODELS

    folder = make_backbone(VIT[0], {**VIT[1], **more})
    text = export(folder, "openmmlab", tmp_path / "out")
    module = MODELS.build(dict(run_snippet(text, "backbone")))
    module.init_weights()
    images = torch.randn(2, 3, 32, 32)
    expected = TimmBackbone(folder)(images)[0]
    module.eval()
    assert torch.allclose(module(images)[0], expected, atol=1e-5)
    again = from_file(tmp_path / "out" / "backbone.pth", heads=2)
    assert again.source["layout"] == "mmpretrain"
    assert torch.equal(again.network.eval()(images), convert(str(folder)).network.eval()(images))


def test_what_mmpretrain_lacks_goes_through_the_wrapper(make_backbone, tmp_path):
    from mmengine.registry import MODELS

    folder = make_backbone(*SWIN)
    text = export(folder, "openmmlab", tmp_path / "out")
    images = torch.randn(1, 3, 64, 64)
    module = MODELS.build({**run_snippet(text, "backbone"), "frozen": True})
    assert torch.equal(module(images)[0], TimmBackbone(folder)(images)[0])
    assert re.search(r"mean=\[123\.675, 116\.280, 103\.530\]", text)


def test_exported_to_transformers_has_the_names_and_shapes_of_vit_model(make_backbone, tmp_path):
    folder = make_backbone(*VIT)
    export(folder, "huggingface", tmp_path / "out")
    state = load_file(tmp_path / "out" / "model.safetensors")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["hidden_size"], config["num_attention_heads"], config["intermediate_size"]) == (32, 2, 128)
    layer = {
        "attention.attention.query.weight": (32, 32), "attention.attention.key.bias": (32,),
        "attention.attention.value.weight": (32, 32), "attention.output.dense.weight": (32, 32),
        "intermediate.dense.weight": (128, 32), "output.dense.weight": (32, 128), "layernorm_before.weight": (32,),
        "layernorm_after.bias": (32,),
    }
    shapes = {f"encoder.layer.1.{name}": shape for name, shape in layer.items()} | {
        "embeddings.cls_token": (1, 1, 32), "embeddings.position_embeddings": (1, 17, 32),
        "embeddings.patch_embeddings.projection.weight": (32, 3, 8, 8), "layernorm.weight": (32,)}
    assert {name: tuple(state[name].shape) for name in shapes} == shapes
    assert len(state) == 6 + 16 * 2
    again = from_file(tmp_path / "out" / "model.safetensors", heads=2)
    assert again.source["layout"] == "transformers"
    images = torch.randn(1, 3, 32, 32)
    assert torch.equal(again.network.eval()(images), convert(str(folder)).network.eval()(images))


def test_transformers_opens_what_was_exported(make_backbone, tmp_path):
    transformers = pytest.importorskip("transformers")
    folder = make_backbone(*VIT)
    export(folder, "huggingface", tmp_path / "out")
    net = transformers.ViTModel.from_pretrained(tmp_path / "out", add_pooling_layer=False).eval()
    images = torch.randn(1, 3, 32, 32)
    expected = convert(str(folder)).network.eval().forward_features(images)
    assert torch.allclose(net(images).last_hidden_state, expected, atol=1e-5)


def test_a_family_without_a_class_there_is_one_line(make_backbone, tmp_path):
    with pytest.raises(WeightsError, match=r"ViTModel is a plain ViT, and this is timm's SwinTransformer"):
        export(make_backbone(*SWIN), "huggingface", tmp_path / "out")
    with pytest.raises(WeightsError, match="this one has layer scale"):
        export(make_backbone(VIT[0], {**VIT[1], "init_values": 0.1}), "huggingface", tmp_path / "out")


@pytest.mark.parametrize("error", [IndexError("list index out of range"), AssertionError()])
def test_a_damaged_file_that_torchs_unpickler_trips_over_is_named(error, tmp_path, monkeypatch):
    def load(*_, **__):
        raise error

    (tmp_path / "w.pth").write_bytes(b"damaged")
    monkeypatch.setattr(torch, "load", load)
    with pytest.raises(WeightsError, match=r"w\.pth cannot be read as weights"):
        read_state(tmp_path / "w.pth")
