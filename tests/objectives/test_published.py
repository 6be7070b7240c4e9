"""The authors' tokenizers from state dicts with their names: ids equal to mmpretrain's copies, strict loading."""

import pickle

import pytest
import torch
from mmpretrain.registry import MODELS
from safetensors.torch import save_file
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from objectives import recipe as recipes
from objectives.objective import Objective
from objectives.pretrain import prepare
from objectives.published import BEiTv2Tokenizer, DallETokenizer
from objectives.recipe import Crop, ObjectiveError
from objectives.registry import Geometry

GRID, WIDTH, CODES = 4, 64, 96
GEOMETRY = Geometry(input_size=32, stride=8, hierarchical=False, width=32)
VIT = ("vit_tiny_patch16_224", {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 4, "num_heads": 2})
KINDS = {"dall-e": DallETokenizer, "vq-kd": BEiTv2Tokenizer}


def dall_e(hidden=64, codes=512):
    """mmpretrain's copy of the encoder, and its state dict, which has OpenAI's names."""
    torch.manual_seed(0)
    network = MODELS.build({"type": "DALL-E", "_scope_": "mmpretrain", "n_hid": hidden, "vocab_size": codes}).eval()
    for parameter in network.parameters():
        parameter.data.add_(0.02 * torch.randn_like(parameter))
    return network, {key: value.clone() for key, value in network.state_dict().items()}


def vq_kd(depth=2, heads=2):
    """mmpretrain's encoder, and the same weights under the names of BEiT v2's file, with what that holds besides."""
    torch.manual_seed(0)
    network = MODELS.build({
        "type": "VQKD", "_scope_": "mmpretrain", "num_embed": CODES, "embed_dims": 32, "quantize_kmeans_init": False,
        "encoder_config": {
            "arch": {"embed_dims": WIDTH, "num_layers": depth, "num_heads": heads, "feedforward_channels": 4 * WIDTH},
            "img_size": GRID * 16, "patch_size": 16, "out_indices": -1, "final_norm": True,
            "out_type": "featmap", "with_cls_token": True, "frozen_stages": -1, "use_abs_pos_emb": True,
            "use_rel_pos_bias": False, "use_shared_rel_pos_bias": False, "layer_scale_init_value": 0.0,
            "norm_cfg": {"type": "LN", "eps": 1e-6},
        },
    }).eval()
    for name, parameter in network.named_parameters():
        if not name.startswith("quantize."):
            parameter.data.add_(0.1 * torch.randn_like(parameter))
    state = {}
    for key, value in network.state_dict().items():
        for their, official in (
            ("encoder.ln1.", "encoder.fc_norm."), ("encoder.layers.", "encoder.blocks."),
            ("encoder.patch_embed.projection.", "encoder.patch_embed.proj."),
            (".ffn.layers.0.0.", ".mlp.fc1."), (".ffn.layers.1.", ".mlp.fc2."), (".ln1.", ".norm1."),
            (".ln2.", ".norm2."),
        ):
            key = key.replace(their, official)
        state[key] = value.clone()
    more = {"decoder.cls_token": torch.zeros(1, 1, WIDTH), "decode_task_layer.0.weight": torch.zeros(WIDTH, WIDTH),
            "teacher_model.visual.proj": torch.zeros(3, 3), "scaling_layer.shift": torch.zeros(1, 3, 1, 1)}
    return network, {**state, **more}


def saved(state, path):
    save_file({key: value.contiguous() for key, value in state.items()}, path)
    return str(path)


def normalised(pixels):
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD))
    return (pixels - mean) / std


def test_the_files_hold_the_authors_names():
    """Spot checks against openai/DALL-E and microsoft/unilm, so that the copies above are not the only witness."""
    assert set(dall_e()[1]) >= {"blocks.input.w", "blocks.group_2.block_1.id_path.b", "blocks.output.conv.w",
                                "blocks.group_4.block_2.res_path.conv_4.w"}
    assert set(vq_kd()[1]) >= {
        "encoder.cls_token", "encoder.pos_embed", "encoder.patch_embed.proj.weight", "encoder.blocks.1.attn.q_bias",
        "encoder.blocks.0.attn.qkv.weight", "encoder.blocks.1.mlp.fc2.bias", "encoder.fc_norm.weight",
        "encode_task_layer.0.weight", "encode_task_layer.2.bias", "quantize.embedding.weight"}


def test_dall_e_ids_equal_mmpretrains(tmp_path):
    theirs, state = dall_e()
    mine = DallETokenizer(GEOMETRY, saved(state, tmp_path / "encoder.safetensors"))
    assert (mine.codes, mine.width) == (512, 512)
    pixels = torch.rand(2, 3, GRID * 8, GRID * 8)  # 8 pixels a token, the tokenizer's own size
    with torch.no_grad():
        expected = theirs(0.8 * pixels + 0.1).flatten(2).transpose(1, 2)
        assert torch.allclose(mine.logits(normalised(pixels)), expected, atol=1e-4)
    mine.rehearse()
    ids = mine(normalised(pixels), None)
    assert torch.equal(ids, expected.argmax(-1))
    assert len(ids.unique()) > 2


def test_vq_kd_ids_equal_mmpretrains(tmp_path):
    theirs, state = vq_kd()
    torch.save({"model": state, "epoch": 99}, tmp_path / "vqkd.pth")
    mine = BEiTv2Tokenizer(Geometry(64, 16, False, 32), str(tmp_path / "vqkd.pth"), heads=2)
    assert (mine.codes, mine.network.codebook.shape[1]) == (CODES, 32)
    pixels = torch.rand(3, 3, GRID * 16, GRID * 16)
    with torch.no_grad():
        expected = theirs.get_tokens(2 * pixels - 1)["token"]
    mine.rehearse()
    ids = mine(normalised(pixels), None)
    assert torch.equal(ids, expected)
    assert len(ids.unique()) > 2
    # another grid: the view is made larger or smaller, the table of positions resampled
    small = BEiTv2Tokenizer(Geometry(24, 8, False, 32), str(tmp_path / "vqkd.pth"))
    small.rehearse()
    assert small(torch.randn(2, 3, 24, 24), None).shape == (2, 9)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("damage", ["missing", "more", "shape"])
def test_keys_without_a_partner_are_named(kind, damage, tmp_path):
    state = dall_e()[1] if kind == "dall-e" else vq_kd()[1]
    key = "blocks.group_3.block_2.res_path.conv_2.b" if kind == "dall-e" else "encoder.blocks.1.norm2.weight"
    if damage == "missing":
        state.pop(key)
    elif damage == "shape":
        state[key] = state[key][:-1]
    else:
        state[key := key + ".extra"] = torch.zeros(1)
    with pytest.raises(ObjectiveError, match=key) as caught:
        KINDS[kind](GEOMETRY, saved(state, tmp_path / "w.safetensors"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", KINDS)
def test_other_files_are_refused_in_a_line(kind, tmp_path):
    other = dall_e()[1] if kind == "vq-kd" else vq_kd()[1]
    program = tmp_path / "encoder.pkl"
    program.write_bytes(pickle.dumps(torch.nn.Linear(1, 1)))
    torch.save(torch.nn.Linear(1, 1), tmp_path / "module.pth")
    torch.save([torch.zeros(1)], tmp_path / "list.pth")
    for weights, line in (
        (None, "objective.teacher.weights=FILE"), (tmp_path / "none.pth", "no file"),
        (program, "plain weights .* never run"), (tmp_path / "module.pth", "plain weights .* never run"),
        (tmp_path / "list.pth", "plain weights"),
        (saved(other, tmp_path / "other.safetensors"), "are not those of"),
    ):
        with pytest.raises(ObjectiveError, match=line) as caught:
            KINDS[kind](GEOMETRY, None if weights is None else str(weights))
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("objective", "kind"), [("beit", "dall-e"), ("beitv2", "vq-kd")])
def test_an_objective_learns_their_ids(objective, kind, make_job, pictures, tmp_path):
    state = dall_e()[1] if kind == "dall-e" else vq_kd()[1]
    slots = recipes.get(objective).slots()
    slots["teacher"] = {"type": KINDS[kind].__name__, "weights": saved(state, tmp_path / "w.safetensors")}
    built = Objective(slots, *VIT, 32, Crop(), True)
    with pytest.raises(ObjectiveError, match="untrained"):
        built.teacher(torch.zeros(1, 3, 32, 32), None)
    prepare(built, make_job(objective, slots=slots), pictures)
    assert built.teacher.counts.sum() == 48 * 16
    assert built.teacher.about()["tokenizer"]["codes"] == (512 if kind == "dall-e" else CODES)
    built.attach(1)
    built.begin_step(0, 0)
    built(pictures.images[:4], pictures.labels[:4], torch.arange(4))["loss"].backward()
    assert built.student.mask_token.grad.abs().sum() > 0
    assert all(p.grad is None for p in built.teacher.parameters())


def test_weights_that_tell_nothing_apart_are_refused(make_job, pictures, tmp_path):
    state = {key: torch.zeros_like(value) for key, value in dall_e()[1].items()}
    slots = recipes.get("beit").slots()
    slots["teacher"] = {"type": "dall_e_tokenizer", "weights": saved(state, tmp_path / "w.safetensors")}
    built = Objective(slots, *VIT, 32, Crop(), True)
    with pytest.raises(ObjectiveError, match="1 of 512 codes stand for all"):
        prepare(built, make_job("beit", slots=slots), pictures)
