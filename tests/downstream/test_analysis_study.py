"""A whole backbone over a stream of pictures."""

import gc
import json

import pytest
import timm
import torch

from downstream.analysis.attention import Convention
from downstream.analysis.probe import AnalysisError, Probe
from downstream.analysis.similarity import linear_cka
from downstream.analysis.study import NO_ATTENTION, Settings, analyse, cross_cka

KWARGS = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2, "num_classes": 0}


def vit(seed=0, **more):
    torch.manual_seed(seed)
    return timm.create_model("vit_tiny_patch16_224", **{**KWARGS, **more}).eval()


def pictures(count, size=8, side=32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(min(size, count - i), 3, side, side, generator=generator) for i in range(0, count, size)]


def test_a_vit_gets_every_number():
    net, kl_of = vit(), []
    found = analyse(net, pictures(20))
    assert found["pictures"] == 20
    assert [layer["name"] for layer in found["layers"]] == ["1", "2", "3"]
    for layer in found["layers"]:
        assert len(layer["heads"]["distance"]) == len(layer["heads"]["entropy"]) == len(layer["heads"]["kl"]) == 2
        assert all(0 < d < 32 for d in layer["heads"]["distance"])
        assert 1 <= layer["effective_rank"] <= layer["width"] == 32
        assert 0 <= layer["within"] <= 1
        assert 0 <= layer["high_frequency_share"] <= 1
        kl_of += layer["heads"]["kl"]
    assert [row[i] for i, row in enumerate(found["cka"])] == pytest.approx([1] * 3)
    assert found["summary"]["attention_distance_last"] == pytest.approx(
        sum(found["layers"][-1]["heads"]["distance"]) / 2
    )
    assert found["summary"]["head_kl_last3"] == pytest.approx(sum(kl_of) / 6)
    assert found["note"] == ""
    json.dumps(found, allow_nan=False)


@pytest.mark.parametrize("model", ["swin_tiny_patch4_window7_224", "swinv2_tiny_window8_256"])
def test_windows_get_every_number(model):
    torch.manual_seed(0)
    net = timm.create_model(
        model, img_size=64, embed_dim=16, depths=(2, 2), num_heads=(2, 4), window_size=4, num_classes=0
    ).eval()
    found = analyse(net, pictures(8, side=64))
    assert [layer["name"] for layer in found["layers"]] == ["1.1", "1.2", "2.1", "2.2"]
    assert [len(layer["heads"]["distance"]) for layer in found["layers"]] == [2, 2, 4, 4]
    assert [layer["stride"] for layer in found["layers"]] == [4, 4, 8, 8]
    for layer in found["layers"]:  # within a window of 4 tokens, shifted or not
        assert max(layer["heads"]["distance"]) < 2**0.5 * 4 * layer["stride"]
    json.dumps(found, allow_nan=False)


def test_a_convolutional_network_gets_the_parts_that_apply_and_one_line():
    torch.manual_seed(0)
    net = timm.create_model("convnext_atto", depths=(1, 1, 2, 1), dims=(8, 16, 24, 32), num_classes=0).eval()
    found = analyse(net, pictures(8))
    assert found["note"] == NO_ATTENTION
    assert all(layer["heads"] is None for layer in found["layers"])
    assert len(found["cka"]) == len(found["layers"]) == 5
    assert found["summary"]["attention_distance_last"] is None
    assert found["summary"]["effective_rank_last"] > 0
    assert found["layers"][-1]["high_frequency_share"] is None  # 1 × 1 at the end of 32 px
    json.dumps(found, allow_nan=False)


def test_batches_do_not_matter():
    whole, split = analyse(vit(), pictures(16, 16)), analyse(vit(), pictures(16, 16)[0].split(4))
    for a, b in zip(whole["layers"], split["layers"], strict=True):
        assert b["heads"]["distance"] == pytest.approx(a["heads"]["distance"], rel=1e-4)
        assert b["heads"]["kl"] == pytest.approx(a["heads"]["kl"], rel=1e-3, abs=1e-7)
        assert b["effective_rank"] == pytest.approx(a["effective_rank"], rel=1e-3)
        assert b["high_frequency_share"] == pytest.approx(a["high_frequency_share"], rel=1e-4)


@pytest.mark.parametrize("features", ["tokens", "mean"])
def test_exact_cka_is_that_of_all_features_at_once(features):
    net, batches = vit(), pictures(24)
    found = analyse(net, batches, Settings(cka="exact", cka_features=features))
    kept = {}
    with Probe(net, None, lambda layer, maps, stride: kept.setdefault(layer, []).append(maps)) as probe:
        for batch in batches:
            probe(batch)
    x, y = (torch.cat(kept[i]) for i in (0, 2))
    if features == "mean":
        x, y = x.mean((2, 3)), y.mean((2, 3))
    assert found["cka"][0][2] == pytest.approx(linear_cka(x, y), rel=1e-5)
    minibatch = analyse(net, pictures(240, 24), Settings(cka_features=features))
    assert minibatch["cka"][0][2] == pytest.approx(found["cka"][0][2], abs=0.2)


def test_between_two_backbones():
    grams = {}
    for seed, net in ((0, vit()), (1, vit(1)), (2, vit(2, embed_dim=16, depth=2))):
        analyse(net, pictures(32), on_grams=grams.setdefault(seed, []).append)
    own = cross_cka(zip(grams[0], grams[0], strict=True), Settings())
    assert [own[i][i] for i in range(3)] == pytest.approx([1] * 3)
    assert own == analyse(vit(), pictures(32))["cka"]
    other = cross_cka(zip(grams[0], grams[2], strict=True), Settings())
    assert (len(other), len(other[0])) == (3, 2)
    assert max(max(row) for row in other) < 1.1


def test_memory_does_not_grow_with_the_pictures():
    """Bytes of tensors alive between batches: as many after 40 batches as after 4."""
    sizes = []

    def stream():
        for i in range(41):
            if i in (4, 40):
                gc.collect()
                sizes.append(sum(t.nbytes for t in gc.get_objects() if type(t) is torch.Tensor))
            yield torch.randn(8, 3, 32, 32)

    analyse(vit(), stream())
    assert sizes[1] <= 1.01 * sizes[0]


def test_the_convention_is_used_and_named():
    plain = analyse(vit(), pictures(8))
    bits = analyse(vit(), pictures(8), Settings(Convention(keys="as they are", entropy="bits")))
    assert bits["layers"][0]["heads"]["distance"][0] < plain["layers"][0]["heads"]["distance"][0]
    assert Settings().name == "keys renormalised, nats, KL to the other heads; minibatch CKA of all tokens"
    assert Settings().as_dict()["convention"]["keys"] == "renormalised"


def test_what_cannot_be_analysed_is_refused(monkeypatch):
    with pytest.raises(AnalysisError, match="no pictures"):
        analyse(vit(), [])
    with pytest.raises(AnalysisError, match="at least 4"):
        analyse(vit(), pictures(3))
    with pytest.raises(AnalysisError, match="cka"):
        Settings(cka="guess")
    monkeypatch.setattr("downstream.analysis.study.EXACT_BYTES", 1000)
    with pytest.raises(AnalysisError, match="fewer pictures"):
        analyse(vit(), pictures(8), Settings(cka="exact"))
