"""The probe: it reads what the network computes and changes nothing."""

import pytest
import timm
import torch
import torch.nn.functional as F

from downstream.analysis.probe import AnalysisError, Layout, Probe, blocks_of, load_network

SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
SWIN = {"img_size": 64, "patch_size": 4, "embed_dim": 16, "depths": (2, 2), "num_heads": (2, 4), "window_size": 4}
NETWORKS = {
    "vit": ("vit_tiny_patch16_224", SMALL),
    "vit without class token": ("vit_tiny_patch16_224", {**SMALL, "class_token": False, "global_pool": "avg"}),
    "vit with registers": ("vit_tiny_patch16_224", {**SMALL, "reg_tokens": 3}),
    "vit, normed queries": ("vit_tiny_patch16_224", {**SMALL, "qk_norm": True}),
    "distilled": ("deit_tiny_distilled_patch16_224", SMALL),
    "rotary": ("eva02_tiny_patch14_224", SMALL),
    "beit": ("beit_base_patch16_224", SMALL),
    "relative": ("vit_relpos_small_patch16_224", SMALL),
    "swin": ("swin_tiny_patch4_window7_224", SWIN),
    "swin, padded": ("swin_tiny_patch4_window7_224", {**SWIN, "window_size": 6}),
    "swin v2": ("swinv2_tiny_window8_256", SWIN),
    "convnext": ("convnext_atto", {"depths": (1, 1, 2, 1), "dims": (8, 16, 24, 32)}),
}
LIVELY = 8.0  # factor on random query-key weights, so that attention is far from uniform


def network(name):
    model, kwargs = NETWORKS[name]
    torch.manual_seed(0)
    net = timm.create_model(model, **kwargs, num_classes=0).eval()
    with torch.no_grad():
        for key, value in net.named_parameters():
            if "qkv" in key or "_proj" in key or "relative_position_bias_table" in key or "rel_pos" in key:
                value.mul_(LIVELY)
    return net, torch.randn(3, 3, kwargs.get("img_size", 64), kwargs.get("img_size", 64))


@pytest.mark.parametrize("name", NETWORKS)
def test_the_result_is_the_same_with_and_without(name):
    net, x = network(name)
    with torch.no_grad():
        before = net.forward_features(x)
    with Probe(net, lambda *_: None, lambda *_: None) as probe:
        during = probe(x)
    with torch.no_grad():
        after = net.forward_features(x)
    assert torch.equal(before, during)
    assert torch.equal(before, after)


@pytest.mark.parametrize("name", [name for name in NETWORKS if name != "convnext"])
def test_attention_read_beside_fused_is_that_of_the_plain_code(name):
    net, x = network(name)
    maps = {}
    for fused in (True, False):
        for module in net.modules():
            if hasattr(module, "fused_attn"):
                module.fused_attn = fused
        seen = maps[fused] = []
        with Probe(net, lambda layer, log, layout, seen=seen: seen.append((layer, log, layout))) as probe:
            probe(x)
    assert [layer for layer, _, _ in maps[True]] == list(range(len(blocks_of(net))))
    for (_, fused, layout), (_, plain, _) in zip(maps[True], maps[False], strict=True):
        torch.testing.assert_close(fused.exp(), plain.exp(), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(fused.exp().sum(-1), torch.ones(fused.shape[:-1]))
        assert fused.shape[0] == len(x) * len(layout.tokens)
        assert fused.shape[2] == fused.shape[3] == layout.tokens.shape[1]


def test_fused_attention_is_on_within_and_outside(monkeypatch):
    net, x = network("vit")
    calls, real = [], F.scaled_dot_product_attention
    flags = [m.fused_attn for m in net.modules() if hasattr(m, "fused_attn")]
    assert all(flags)
    with Probe(net, lambda *_: None) as probe:
        probe(x)
    assert [m.fused_attn for m in net.modules() if hasattr(m, "fused_attn")] == flags
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda *a, **k: calls.append(1) or real(*a, **k))
    net.forward_features(x)
    assert len(calls) == len(net.blocks)
    assert not any(block._forward_hooks or block._forward_pre_hooks for block in net.blocks)


def test_hooks_go_when_the_network_fails():
    net, x = network("vit")
    with pytest.raises(AssertionError), Probe(net, lambda *_: None) as probe:
        probe(x[..., :20])
    assert not any(block._forward_hooks for block in net.blocks)


def test_class_tokens_and_registers_have_no_place():
    for name, prefix in (("vit", 1), ("vit without class token", 0), ("vit with registers", 4), ("distilled", 2)):
        net, x = network(name)
        layouts = []
        with Probe(net, lambda layer, log, layout, layouts=layouts: layouts.append(layout)) as probe:
            probe(x)
        assert layouts[0].tokens.tolist() == [[-1] * prefix + list(range(16))]
        assert layouts[0].stride == 8


def test_features_are_maps_of_every_block():
    for name, shapes in (
        ("vit with registers", [(3, 32, 4, 4)] * 2),
        ("swin", [(3, 16, 16, 16)] * 2 + [(3, 32, 8, 8)] * 2),
        ("swin v2", [(3, 16, 16, 16)] * 2 + [(3, 32, 8, 8)] * 2),
        ("convnext", [(3, 8, 16, 16), (3, 16, 8, 8), (3, 24, 4, 4), (3, 24, 4, 4), (3, 32, 2, 2)]),
    ):
        net, x = network(name)
        seen = []
        with Probe(net, None, lambda layer, square, stride, seen=seen: seen.append((square.shape, stride))) as probe:
            probe(x)
        assert [tuple(shape) for shape, _ in seen] == shapes
        assert [stride for _, stride in seen] == [x.shape[-1] / shape[2] for shape in shapes]


def test_a_convolutional_network_has_no_attention():
    net, x = network("convnext")
    seen = []
    with Probe(net, lambda *a: seen.append(a)) as probe:
        probe(x)
    assert not seen


def test_windows_are_where_swin_cuts_them():
    """A picture whose tokens carry their own index, through timm's own partition."""
    from timm.models.swin_transformer import window_partition

    index = torch.arange(8 * 8).view(1, 8, 8, 1)
    rolled = torch.roll(index, (-2, -2), (1, 2))
    assert torch.equal(Layout.windows((8, 8), 4, (4, 4)).tokens, window_partition(index, (4, 4)).view(-1, 16))
    assert torch.equal(Layout.windows((8, 8), 4, (4, 4), (2, 2)).tokens, window_partition(rolled, (4, 4)).view(-1, 16))
    padded = Layout.windows((5, 7), 4, (4, 4)).tokens
    assert padded.shape == (4, 16)
    assert sorted(padded[padded >= 0].tolist()) == list(range(35))


def test_shifted_windows_attend_only_where_distances_are_true():
    net, x = network("swin")
    checked = []

    def see(layer, log, layout):
        rows, columns = layout.tokens // layout.grid[1], layout.tokens % layout.grid[1]
        true = ((rows[:, :, None] - rows[:, None]) ** 2 + (columns[:, :, None] - columns[:, None]) ** 2).sqrt()
        apart = (true * layout.stride - layout.distances).abs() > 1e-3  # (W, N, N)
        attention = log.exp().view(len(x), *apart.shape[:1], -1, *apart.shape[1:])
        checked.append(int(apart.sum()))
        assert attention.masked_select(apart[None, :, None]).sum() < 1e-6

    with Probe(net, see) as probe:
        probe(x)
    assert checked[1] > 0


def test_distances_are_in_pixels():
    layout = Layout.whole((2, 3), 16.0, prefix=1)
    distances = layout.distances[1:, 1:]
    assert distances[0].tolist() == pytest.approx([0, 16, 32, 16, 16 * 2**0.5, 16 * 5**0.5])
    assert torch.equal(distances, distances.T)


def test_a_network_of_another_form_is_refused():
    with pytest.raises(AnalysisError, match="ResNet"):
        Probe(timm.create_model("resnet10t", num_classes=0))


def test_folders_of_every_family_load(make_backbone):
    for name in ("rotary", "relative", "convnext"):
        folder = make_backbone(*NETWORKS[name])
        net, about, size = load_network(folder)
        assert about["model"] == NETWORKS[name][0]
        assert size == NETWORKS[name][1].get("img_size", net.pretrained_cfg["input_size"][-1])
        assert not net.training
        assert not any(p.requires_grad for p in net.parameters())
