"""Tokenizers and what predicts their ids."""

import json

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from objectives import recipe as recipes
from objectives.backbone import create_backbone, geometry_of
from objectives.head import LinearHead
from objectives.loss import CrossEntropy, SmoothL1, TokenCrossEntropy
from objectives.pretrain import _cache_targets, _Views, build, prepare, pretrain, recall, save_weights
from objectives.recipe import ObjectiveError
from objectives.registry import Geometry
from objectives.student import MaskTokenStudent, TwoPathStudent, VisibleStudent
from objectives.tokenizer import BATCH, VQKD, DiscreteVAE, nearest, spherical_kmeans

VIT = Geometry(input_size=32, stride=8, hierarchical=False, width=32)
KWARGS = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 4, "num_heads": 2}
NAMES = ["beit", "beitv2"]


def with_teacher(make_job, name, folder="run", cache=None, **changes):
    slots = make_job(name).slots
    return make_job(name, folder=folder, cache=cache, slots={**slots, "teacher": {**slots["teacher"], **changes}})


def ready(job, pictures):
    objective = build(job, pictures)
    prepare(objective, job, pictures)
    return objective


@pytest.mark.parametrize("name", NAMES)
def test_training_lowers_the_reconstruction_loss(name, make_job, pictures):
    job = make_job(name)
    fresh, trained = build(job, pictures), ready(job, pictures)
    images = next(_Views(fresh, job, pictures).whole(48))
    assert trained.teacher.reconstruction(images) < 0.9 * fresh.teacher.reconstruction(images)


@pytest.mark.parametrize("name", NAMES)
def test_ids_are_one_per_token_and_in_range(name, make_job, pictures):
    job = make_job(name)
    teacher = ready(job, pictures).teacher
    images = torch.randn(5, 3, 32, 32)
    ids = teacher(images, None)
    assert ids.dtype == torch.int64
    assert ids.shape == (5, 16)
    assert ids.min() >= 0
    assert ids.max() < 64
    assert not ids.requires_grad
    assert torch.equal(ids, teacher(images, None))
    assert teacher.counts.sum() == 48 * 16
    assert 2 < teacher.perplexity <= teacher.used + 1e-6 <= 64
    with pytest.raises(ObjectiveError, match="zoom"):
        teacher(torch.randn(5, 3, 64, 64), None)


@pytest.mark.parametrize("name", NAMES)
def test_an_unprepared_tokenizer_gives_no_ids(name, make_job, pictures):
    with pytest.raises(ObjectiveError, match="untrained"):
        build(make_job(name), pictures).teacher(torch.zeros(1, 3, 32, 32), None)


@pytest.mark.parametrize("name", NAMES)
def test_ids_are_those_of_the_nearest_code(name, make_job, pictures):
    teacher = build(make_job(name), pictures).teacher
    images = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        vectors, codes = teacher.encode(images), F.normalize(teacher.codebook, dim=-1)
        brute = [[min(range(64), key=lambda k: (v - codes[k]).square().sum().item()) for v in one] for one in vectors]
    assert teacher.tokenize(images).tolist() == brute


def test_nearest_and_kmeans_on_known_clusters():
    generator = torch.Generator().manual_seed(0)
    centres = torch.eye(4)
    vectors = F.normalize(centres.repeat_interleave(20, 0) + 0.05 * torch.randn(80, 4, generator=generator), dim=-1)
    assert nearest(vectors, centres).tolist() == [i for i in range(4) for _ in range(20)]
    found = spherical_kmeans(vectors, 12, generator)
    assert torch.allclose(found.norm(dim=-1), torch.ones(12))
    assert ((vectors @ found.t()).amax(-1) > 0.98).all()


def test_codes_that_nothing_chose_are_put_on_vectors():
    teacher = VQKD(VIT, codes=8, steps=100, views=64)
    vectors = F.normalize(torch.randn(50, 32), dim=-1)
    for step in range(VQKD.REVIVE):
        teacher._follow(vectors, torch.zeros(50, dtype=torch.int64), step, torch.Generator())
    assert ((teacher.codebook[1:] @ vectors.t()).amax(-1) > 1 - 1e-5).all()
    assert torch.allclose(teacher.codebook.norm(dim=-1), torch.ones(8))


def test_a_tokenizer_depends_on_its_settings_alone(make_job, pictures):
    first = ready(make_job("beit", seed=0), pictures).teacher
    torch.manual_seed(99)
    second = ready(make_job("beit", seed=5), pictures).teacher
    other = ready(with_teacher(make_job, "beit", lr=1e-3), pictures).teacher
    assert first.fingerprint() == second.fingerprint() != other.fingerprint()


@pytest.mark.parametrize("name", NAMES)
def test_a_trained_objective_is_looked_at_with_the_tokenizer_of_its_device(
    name, make_job, pictures, tmp_path, monkeypatch
):
    cache = tmp_path / "cache"
    job = make_job(name, cache=cache)
    trained = ready(job, pictures).teacher
    monkeypatch.setattr("objectives.tokenizer.Tokenizer._fit", lambda *a: pytest.fail("trained again"))
    again = build(job, pictures)
    recall(again, job, pictures, "cpu")
    assert again.teacher.fingerprint() == trained.fingerprint()
    with pytest.raises(ObjectiveError, match="that was trained on cuda cannot be read"):
        recall(build(job, pictures), job, pictures, "cuda:1")
    views = _Views(again, job, pictures)
    (own,) = cache.iterdir()
    own.rename(trained._place(views, "cuda", cache))
    recall(build(job, pictures), job, pictures, "cuda:1")
    with pytest.raises(ObjectiveError, match="on cpu"):
        recall(build(job, pictures), job, pictures, "cpu")


@pytest.mark.parametrize("name", NAMES)
def test_second_call_reads_the_cache(name, make_job, pictures, tmp_path, monkeypatch):
    job = make_job(name, cache=tmp_path / "cache")
    trained = ready(job, pictures).teacher
    files = list((tmp_path / "cache").iterdir())
    assert [f.suffix for f in files] == [".safetensors"]
    with monkeypatch.context() as patch:
        patch.setattr("objectives.tokenizer.Tokenizer._fit", lambda *a: pytest.fail("trained again"))
        again = ready(make_job(name, cache=tmp_path / "cache", seed=3), pictures).teacher
        assert again.fingerprint() == trained.fingerprint()
        assert again.perplexity == trained.perplexity
    files[0].write_bytes(b"damaged")
    assert ready(job, pictures).teacher.fingerprint() == trained.fingerprint()
    assert len(load_file(files[0])) == len(trained.state_dict())
    ready(with_teacher(make_job, name, cache=tmp_path / "cache", steps=3), pictures)
    assert len(list((tmp_path / "cache").iterdir())) == 2


@pytest.mark.parametrize("name", NAMES)
def test_weights_file_stands_in_for_training(name, make_job, pictures, tmp_path, monkeypatch):
    trained = ready(make_job(name), pictures).teacher
    path = tmp_path / "tokenizer.safetensors"
    save_weights(trained, path)
    monkeypatch.setattr("objectives.tokenizer.Tokenizer._fit", lambda *a: pytest.fail("trained"))
    loaded = ready(with_teacher(make_job, name, weights=str(path)), pictures).teacher
    images = torch.randn(4, 3, 32, 32)
    assert torch.equal(loaded(images, None), trained(images, None))
    assert loaded.fingerprint() == trained.fingerprint()
    for weights, changes in ((tmp_path / "none.safetensors", {}), (path, {"codes": 32})):
        with pytest.raises(ObjectiveError, match=str(weights)) as caught:
            ready(with_teacher(make_job, name, weights=str(weights), **changes), pictures)
        assert "\n" not in str(caught.value)


def test_a_collapsed_codebook_is_refused(make_job, pictures, monkeypatch):
    def collapse(self, *_):
        self.encoder[-1].weight.data.zero_()  # every token becomes the bias

    monkeypatch.setattr("objectives.tokenizer.Tokenizer._fit", collapse)
    with pytest.raises(ObjectiveError, match=r"DiscreteVAE: the codebook collapsed \(1 of 64 .* raise") as caught:
        ready(make_job("beit"), pictures)
    assert "\n" not in str(caught.value)


def test_folder_tells_of_the_codebook_and_progress_of_the_stage(make_job, pictures):
    stages = []
    folder = pretrain(make_job("beit", progress=lambda *a: stages.append(a)), pictures)
    told = json.loads((folder / "backbone.json").read_text())["tokenizer"]
    assert told["codes"] == 64
    assert 2 <= told["perplexity"] <= told["used"] <= 64
    assert ("tokenizer", 20, 20) in stages


def test_folder_tells_what_the_tokenizers_training_took(make_job, pictures, tmp_path):
    """Views beyond the budget, in the seed that trained it and in those that read it."""
    told = []
    for seed in (0, 1):
        folder = pretrain(make_job("beit", folder=f"run{seed}", seed=seed, cache=tmp_path / "cache"), pictures)
        about = json.loads((folder / "backbone.json").read_text())
        assert about["images_seen"] == 64
        told.append([about["tokenizer"], about["shared_seconds"]["tokenizer"]])
    assert told[0] == told[1]
    assert told[0][0]["images_seen"] == 20 * BATCH
    assert told[0][1] > 0
    save_weights(ready(make_job("beit"), pictures).teacher, tmp_path / "own.safetensors")
    loaded = ready(with_teacher(make_job, "beit", weights=str(tmp_path / "own.safetensors")), pictures).teacher
    assert loaded.about()["tokenizer"]["images_seen"] == 0
    assert not loaded.seconds


def test_cached_ids_are_integers_and_equal_fresh_ones(make_job, pictures):
    job = make_job("beit", images_seen=96)
    fresh, cached = ready(job, pictures), ready(job, pictures)
    _cache_targets(cached, job, pictures)
    assert cached.targets.dtype == torch.int32
    assert cached.targets.shape == (48, 2, 16)
    losses, index = [], torch.arange(16)
    for objective in (fresh, cached):
        objective.eval()
        objective.begin_step(0, 0)
        losses.append(objective(pictures.images[:16], pictures.labels[:16], index)["loss"].item())
    assert losses[0] == losses[1]


# --- students, heads, losses ------------------------------------------------------------------------------------------


def two_paths(**kwargs):
    backbone = create_backbone("vit_tiny_patch16_224", {**KWARGS, **kwargs})
    return TwoPathStudent(backbone, geometry_of(backbone, 32)).eval()


def test_two_path_loss_is_the_sum_of_both_cross_entropies():
    torch.manual_seed(0)
    student = two_paths()
    head = LinearHead(student.geometry, 64, paths=2)
    images, ids = torch.randn(3, 3, 32, 32), torch.randint(64, (3, 16))
    mask = torch.rand(3, 16) < 0.4
    net = student.backbone
    with torch.no_grad():
        loss = TokenCrossEntropy()(head(student(images, mask), mask), ids, mask)
        x = net._pos_embed(torch.where(mask[..., None], student.mask_token, net.patch_embed(images)))
        states = [x := block(x) for block in net.blocks]
        second = torch.nn.Sequential(*student.second)(torch.cat([states[3][:, :1], states[2][:, 1:]], 1))
        by_hand = 0.0
        for tokens in (states[3], second):
            logits = head.predict(net.norm(tokens)[:, 1:])
            by_hand += -logits.log_softmax(-1).gather(-1, ids[..., None])[mask].mean()
    assert student.early == 3
    assert loss.item() == pytest.approx(by_hand.item(), rel=1e-6)


def test_first_path_is_the_mask_token_students():
    student = two_paths()
    plain = MaskTokenStudent(student.backbone, student.geometry).eval()
    plain.mask_token.data.copy_(student.mask_token)
    images, mask = torch.randn(2, 3, 32, 32), torch.rand(2, 16) < 0.4
    with torch.no_grad():
        assert torch.allclose(student(images, mask)[:, :16], plain(images, mask), atol=1e-6)


def test_registers_stay_out_of_the_second_path():
    assert two_paths(reg_tokens=2)(torch.randn(2, 3, 32, 32), None).shape == (2, 32, 32)


def test_two_paths_need_a_class_token():
    with pytest.raises(ObjectiveError, match="class token"):
        two_paths(class_token=False, global_pool="avg")
    swin = create_backbone("swin_tiny_patch4_window7_224", {
        "img_size": 64, "window_size": 2, "embed_dim": 16, "depths": (1, 1), "num_heads": (1, 2)})
    with pytest.raises(ObjectiveError, match="class token"):
        TwoPathStudent(swin, geometry_of(swin, 64))
    with pytest.raises(ObjectiveError, match="no block before the last"):
        two_paths(depth=1)


@pytest.mark.parametrize("paths", [1, 2])
def test_visible_tokens_only_are_refused(paths):
    backbone = create_backbone("vit_tiny_patch16_224", KWARGS)
    student = VisibleStudent(backbone, geometry_of(backbone, 32))
    mask = torch.zeros(2, 16, dtype=torch.bool)
    mask[:, :6] = True
    with pytest.raises(ObjectiveError, match=r"objective\.student\.type"):
        LinearHead(student.geometry, 64, paths=paths)(student(torch.randn(2, 3, 32, 32), mask), mask)


def test_losses_refuse_targets_of_the_other_kind():
    ids, mask = torch.randint(64, (2, 16)), torch.ones(2, 16, dtype=torch.bool)
    prediction = torch.randn(2, 16, 64)
    for target in (torch.randn(2, 16, 64), torch.tensor([0, 1])):
        with pytest.raises(ObjectiveError, match="an id per token"):
            TokenCrossEntropy()(prediction, target, mask)
    with pytest.raises(ObjectiveError, match="masks nothing"):
        TokenCrossEntropy()(prediction, ids, None)
    with pytest.raises(ObjectiveError, match="does not go with"):
        TokenCrossEntropy()(prediction[:, :10], ids, mask)
    with pytest.raises(ObjectiveError):
        SmoothL1()(prediction, ids, mask)
    with pytest.raises(ObjectiveError, match=r"objective\.loss\.region"):
        TokenCrossEntropy(region="picture")
    assert TokenCrossEntropy("all")(prediction, ids, None).item() == pytest.approx(
        CrossEntropy()(prediction.flatten(0, 1), ids.flatten(), None).item(), rel=1e-6)


def test_ids_are_not_normalised(make_job, pictures):
    slots = make_job("beit").slots
    with pytest.raises(ObjectiveError, match="use NoNorm"):
        build(make_job("beit", slots={**slots, "normalisation": {"type": "LayerNorm"}}), pictures)


def test_settings_that_make_no_tokenizer_are_refused():
    with pytest.raises(ObjectiveError, match="codes=1"):
        DiscreteVAE(VIT, codes=1)


def test_masks_are_those_of_the_paper():
    assert all(recipes.get(name).corruption == {"type": "BlockMask", "ratio": 75 / 196} for name in NAMES)
    corruption = build_mask(Geometry(224, 16, False, 768))
    assert corruption.hidden == 75


def build_mask(geometry):
    from objectives.registry import build as build_slot

    return build_slot("corruption", recipes.get("beitv2").corruption, geometry=geometry)
