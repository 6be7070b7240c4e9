"""Frozen ViTs as teachers: last norm, projection, class token and its attention; files behind paths."""

import json
import os

import pytest
import timm
import torch
from safetensors.torch import save_file

from objectives.files import content, contents
from objectives.frozen import FrozenNetwork
from objectives.pretrain import _cache_targets, build
from objectives.recipe import ObjectiveError
from objectives.registry import Geometry
from objectives.tokenizer import VQKD

NAME = "test_vit"  # timm's own: 160 pixels, patches of 16, width 64, class token
GEOMETRY = Geometry(input_size=80, stride=8, hierarchical=False, width=32)  # 10 x 10 tokens, as the teacher's


def vit(path, seed=0, **changes):
    """The network with a head of 24 channels, its weights in a file."""
    torch.manual_seed(seed)
    net = timm.create_model(NAME, num_classes=24, **changes).eval()
    for parameter in net.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    save_file(net.state_dict(), path)
    return net


def teacher(path, name=NAME, **options):
    return FrozenNetwork(GEOMETRY, f"timm:{name}", str(path), **options)


@pytest.fixture
def images():
    return torch.randn(2, 3, 160, 160, generator=torch.Generator().manual_seed(0))


def own(made, images):
    return images * made.scale + made.shift


@pytest.mark.parametrize(("options", "width"), [({}, 64), ({"norm": True}, 64), ({"projection": True}, 24)])
def test_norm_and_projection_are_the_networks(options, width, images, tmp_path):
    net = vit(tmp_path / "w.safetensors")
    made = teacher(tmp_path / "w.safetensors", **options)
    assert made.width == width
    kept = []
    net.norm.register_forward_hook(lambda module, inputs, output: kept.append(inputs[0]))
    with torch.no_grad():
        normed = net.forward_features(own(made, images))
        expected = kept[0] if not options else normed if width == 64 else net.head(normed)
        got = made(images, None)
    assert got.shape == (2, 100, width)
    assert torch.allclose(got, expected[:, 1:], atol=1e-5)
    assert torch.equal(made.to_predict(got), got)


@pytest.mark.parametrize("projection", [False, True])
def test_summary_is_the_class_token_and_its_attention_that_of_the_last_block(projection, images, tmp_path):
    net = vit(tmp_path / "w.safetensors")
    made = teacher(tmp_path / "w.safetensors", summary=True, projection=projection)
    kept = {}
    net.blocks[-1].norm1.register_forward_hook(lambda module, inputs, output: kept.update(x=output))
    net.norm.register_forward_hook(lambda module, inputs, output: kept.update(out=inputs[0]))
    with torch.no_grad():
        normed = net.forward_features(own(made, images))
        raw = made(images, None)
        expected = net.head(normed) if projection else kept["out"]
        attn, width = net.blocks[-1].attn, 64 // net.blocks[-1].attn.num_heads
        weights = 0
        for head in range(attn.num_heads):
            part = slice(head * width, (head + 1) * width)
            query, key = (kept["x"] @ attn.qkv.weight[i * 64 :][part].T + attn.qkv.bias[i * 64 :][part] for i in (0, 1))
            weights = weights + (query[:, :1] @ key.transpose(1, 2) / width**0.5).softmax(-1)[:, 0, 1:]
    assert raw.shape == (2, 101, made.width + 1)
    assert torch.allclose(made.to_predict(raw), expected, atol=1e-5)
    assert torch.allclose(made.attention(raw), weights / attn.num_heads, atol=1e-6)
    mean = teacher(tmp_path / "w.safetensors", summary=True, projection=projection, class_token=False)
    assert torch.allclose(mean(images, None)[:, 0], expected[:, 1:].mean(1), atol=1e-5)
    assert mean.fingerprint() != made.fingerprint()


def test_milan_sees_what_the_class_token_attends_to(make_job, pictures, tmp_path):
    vit(tmp_path / "w.safetensors")
    slots = make_job("milan").slots
    slots["teacher"] |= {"source": f"timm:{NAME}", "weights": str(tmp_path / "w.safetensors"), "projection": True}
    objective = build(make_job("milan", slots=slots), pictures)
    objective.begin_step(0, 0)
    index = torch.arange(4)
    parts = objective(pictures.images[:4], pictures.labels[:4], index, mode="tensor")
    assert parts["prediction"].shape == parts["target"].shape == (4, 17, 24)
    assert torch.allclose(parts["target"].norm(dim=-1), torch.ones(4, 17), atol=1e-5)
    attention = objective.teacher.attention(parts["raw"])
    objective.begin_step(0, 0)
    clean = objective.augment(pictures.images[:4])[0]
    again = objective.corruption(clean, objective.generator, attention)
    assert torch.equal(parts["mask"], again.mask)
    objective(pictures.images[:4], pictures.labels[:4], index)["loss"].backward()


def test_what_a_network_lacks_is_refused_in_a_line(tmp_path):
    state = timm.create_model(NAME, num_classes=0).state_dict()
    save_file(state, tmp_path / "w.safetensors")
    for options, line in (({"projection": True}, "head.weight"),):
        with pytest.raises(ObjectiveError, match=line):
            teacher(tmp_path / "w.safetensors", **options)
    for options in ({"norm": True}, {"projection": True}):
        with pytest.raises(ObjectiveError, match=r"efficientnet-lite0 is no plain ViT"):
            FrozenNetwork(GEOMETRY, "efficientnet-lite0", **options)
    timm_vit = timm.create_model("vit_tiny_patch16_224", num_classes=0).state_dict()
    save_file(timm_vit, tmp_path / "fixed.safetensors")
    with pytest.raises(ObjectiveError, match=r"objective\.teacher\.tokens: .* pictures of 224 pixels only"):
        FrozenNetwork(GEOMETRY, "timm:vit_tiny_patch16_224", str(tmp_path / "fixed.safetensors"), tokens=2)


def test_the_suites_own_teacher_is_as_it_was():
    made = FrozenNetwork(GEOMETRY, "efficientnet-lite0", summary=True)
    assert made.fingerprint() == ""  # so that caches of targets keep their names
    raw = made(torch.randn(2, 3, 80, 80), None)
    assert raw.shape == (2, 101, 112)
    assert torch.allclose(raw[:, 0], raw[:, 1:].mean(1), atol=1e-5)
    assert torch.equal(made.to_predict(raw), raw)
    assert torch.allclose(made.attention(raw).sum(1), torch.ones(2), atol=1e-5)


# --- what is behind a path --------------------------------------------------------------------------------------------


def test_contents_follow_files_and_folders(tmp_path):
    path, folder = tmp_path / "w.safetensors", tmp_path / "pretrain"
    path.write_bytes(b"one")
    first = content(path)
    path.write_bytes(b"two")  # of the same size
    os.utime(path, (1, 1))
    assert first != content(path) != ""
    folder.mkdir()
    (folder / "backbone.safetensors").write_bytes(b"one")
    about = {"model": "m", "kwargs": {"depth": 2}, "seconds": 1}
    (folder / "backbone.json").write_text(json.dumps(about))
    before = content(folder)
    (folder / "backbone.json").write_text(json.dumps({**about, "seconds": 2}))
    assert content(folder) == before
    (folder / "backbone.json").write_text(json.dumps({**about, "kwargs": {"depth": 3}}))
    assert content(folder) != before
    slot = {"type": "X", "source": str(folder), "weights": None, "source_weights": str(path), "layer": 3}
    assert contents(slot) == {"source": content(folder), "source_weights": content(path)}
    for source in ("efficientnet-lite0", "timm:test_vit", str(tmp_path / "nowhere"), str(tmp_path)):
        assert contents({"type": "X", "source": source}) == {}


def test_another_teacher_behind_the_same_path_makes_other_targets(make_job, pictures, tmp_path):
    path, cache = tmp_path / "w.safetensors", tmp_path / "cache"
    slots = make_job("eva").slots
    slots["teacher"] |= {"source": f"timm:{NAME}", "weights": str(path)}
    targets = []
    for seed in (0, 0, 1):
        vit(path, seed)
        job = make_job("eva", slots=slots, cache=cache, images_seen=96)
        objective = build(job, pictures)
        _cache_targets(objective, job, pictures)
        targets.append(objective.targets)
    assert len(list(cache.iterdir())) == 2
    assert torch.equal(targets[0], targets[1])
    assert not torch.equal(targets[0], targets[2])


def test_another_teacher_behind_the_same_path_makes_another_tokenizer(tmp_path):
    path, told = tmp_path / "w.safetensors", []
    for seed in (0, 0, 1):
        vit(path, seed)
        told.append(VQKD(GEOMETRY, source=f"timm:{NAME}", source_weights=str(path), codes=8, steps=1).settings())
    assert told[0] == told[1] != told[2]
    assert "files" not in VQKD(GEOMETRY, codes=8, steps=1).settings()


def test_layers_count_from_the_end_too(images, tmp_path):
    vit(tmp_path / "w.safetensors")
    count = len(teacher(tmp_path / "w.safetensors").network.blocks)
    for layer in (-2, -count):
        made, counted = (teacher(tmp_path / "w.safetensors", layer=n) for n in (layer, count + layer))
        assert torch.equal(made(images, None), counted(images, None))
        assert not torch.allclose(made(images, None), teacher(tmp_path / "w.safetensors")(images, None))
    for layer in (count, -count - 1):
        with pytest.raises(ObjectiveError, match="the teacher has no such layer"):
            teacher(tmp_path / "w.safetensors", layer=layer)
