"""The whole registry, parametrised: whatever is registered must learn, resume and leave its teacher alone."""

import json

import pytest
import timm
import torch
from safetensors.torch import load_file

from objectives import recipe as recipes
from objectives.compatibility import BACKBONES
from objectives.pretrain import _Steps, build, parameter_groups, prepare, pretrain, warmup_steps

TRAINED = sorted(name for name, recipe in recipes.recipes().items() if recipe.trains)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """Tokenizers and teacher targets are made once here and then read; test_tokenizers makes each anew."""
    return tmp_path_factory.mktemp("cache")


def batch(pictures, count=16):
    index = torch.arange(count)
    return {"images": pictures.images[:count], "labels": pictures.labels[:count], "index": index}


@pytest.mark.parametrize("name", TRAINED)
def test_steps_lower_the_loss_and_reach_the_student_only(name, make_job, pictures, cache):
    job = make_job(name, cache=cache)
    objective = build(job, pictures)
    prepare(objective, job, pictures)
    optimiser = torch.optim.AdamW([p for p in objective.parameters() if p.requires_grad], lr=2e-3)
    teacher = {k: v.clone() for k, v in objective.teacher.state_dict().items()}
    losses = []
    for _ in range(8):
        objective.begin_step(0, 0)  # the same draws each time: the loss must fall
        loss = objective(**batch(pictures), mode="loss")["loss"]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert all(torch.isfinite(torch.tensor(losses)))
    assert losses[-1] < losses[0]
    missing = [
        key for key, p in objective.student.backbone.named_parameters()
        if p.requires_grad and p.grad is None and "cls_token" not in key
    ]
    assert not missing
    assert all(p.grad is None for p in objective.teacher.parameters())
    assert all(torch.equal(v, objective.teacher.state_dict()[k]) for k, v in teacher.items())


@pytest.mark.parametrize("name", sorted(recipes.recipes()))
def test_backbone_folder_is_exactly_timms(name, make_job, pictures, cache):
    folder = pretrain(make_job(name, cache=cache), pictures)
    about = json.loads((folder / "backbone.json").read_text())
    backbone = timm.create_model(about["model"], **about["kwargs"])
    backbone.load_state_dict(load_file(folder / "backbone.safetensors"), strict=True)
    assert about["images_seen"] == (64 if recipes.get(name).trains else 0)
    assert about["features"]["effective_rank"] > 1
    assert not list(folder.glob("*.tmp"))


@pytest.mark.parametrize("name", TRAINED)
def test_resumes_bit_equal(name, make_job, pictures, cache, monkeypatch):
    monkeypatch.setattr("objectives.pretrain.CHECKPOINT_EVERY", 2)
    monkeypatch.setattr("objectives.pretrain.CHECKPOINT_SHARE", 1e9)

    def job(folder):
        return make_job(name, folder=folder, images_seen=96, cache=cache)

    whole = pretrain(job("whole"), pictures)

    class Stop(Exception):
        pass

    save = _Steps._save

    def interrupt(self, runner, step):
        save(self, runner, step)
        raise Stop

    with monkeypatch.context() as patch:
        patch.setattr("objectives.pretrain._Steps._save", interrupt)
        with pytest.raises(Stop):
            pretrain(job("halves"), pictures)
    assert list(job("halves").folder.glob("checkpoint-*.pt"))
    halves = pretrain(job("halves"), pictures)
    a, b = (load_file(folder / "backbone.safetensors") for folder in (whole, halves))
    assert all(torch.equal(a[key], b[key]) for key in a)


def test_recipes_are_short_and_complete():
    from pathlib import Path

    import objectives.zoo

    for path in Path(objectives.zoo.__path__[0]).glob("[a-z]*.py"):
        lines = path.read_text().splitlines()
        assert len(lines) <= 60, path
        name = path.stem
        assert f"bench run --objective {name}" in "\n".join(lines), path
        assert recipes.get(name).name == name


def test_learning_rate_rule_gives_the_papers_value_at_the_papers_size():
    optimiser = recipes.get("mae").optimiser
    assert recipes.scaled_lr(optimiser, 4096, 768) == pytest.approx(2.4e-3)
    assert recipes.scaled_lr(optimiser, 1024, 768) == pytest.approx(1.2e-3)
    assert recipes.scaled_lr(optimiser, 4096, 192) == pytest.approx(9.6e-3)


def test_learning_rate_rule_takes_the_nearest_of_several_widths():
    optimiser = recipes.Optimiser(lr=1e-3, batch=1024, width=(192, 768))
    for width in (192, 384, 768):
        assert recipes.scaled_lr(optimiser, 1024, width) == pytest.approx(1e-3)
    assert recipes.scaled_lr(optimiser, 1024, 96) == pytest.approx(2e-3)
    assert recipes.scaled_lr(optimiser, 1024, 1536) == pytest.approx(5e-4)


@pytest.mark.parametrize("width", [0, 0.5, (768, 192), (192,), (0, 768), (192, 768.5), "wide"])
def test_a_width_that_is_none_is_refused(width):
    with pytest.raises(recipes.ObjectiveError, match=r"optimiser\.width"):
        recipes.Optimiser(lr=1e-3, batch=1024, width=width)


@pytest.mark.parametrize(
    ("backbone", "exempt"), [
        ("Swin", "relative_position_bias_table"), ("Swin V2", "logit_scale"), ("Swin V2", "cpb_mlp.2.weight"),
        ("ViT, relative, per block", "relative_position_bias_table"), ("ViT, class token", "pos_embed"),
    ],
)
def test_positions_are_not_decayed(backbone, exempt, make_job, pictures):
    model, kwargs = BACKBONES[backbone]
    objective = build(make_job("supervised", model=model, kwargs=kwargs, input_size=64), pictures)
    decayed, plain = parameter_groups(objective, 0.05)
    ids = [{id(p) for p in group["params"]} for group in (decayed, plain)]
    own = [p for name, p in objective.named_parameters() if name.endswith(exempt)]
    assert own
    assert all(id(p) in ids[1] and id(p) not in ids[0] for p in own)
    assert id(objective.head.predict.weight) in ids[0]


def test_cached_targets_equal_fresh_ones(make_job, pictures, tmp_path):
    from objectives.pretrain import _cache_targets

    job = make_job("maskdistill", images_seen=96, cache=tmp_path / "cache")
    fresh, cached = build(job, pictures), build(job, pictures)
    _cache_targets(cached, job, pictures)
    assert cached.targets.shape[:2] == (48, 2)
    losses = []
    for objective in (fresh, cached):
        objective.eval()
        objective.begin_step(0, 0)
        losses.append(objective(**batch(pictures), mode="loss")["loss"].item())
    assert losses[0] == pytest.approx(losses[1], rel=2e-3)  # float16 targets


def test_warm_up_is_the_papers_share_and_long_enough_in_short_trainings():
    def steps(warmup, count):
        return warmup_steps(recipes.Optimiser(lr=1e-3, batch=256, warmup=warmup), count)

    assert [steps(0.1, n) for n in (3, 4, 375, 2000)] == [0, 2, 38, 200]
    assert [steps(1 / 80, n) for n in (375, 2000, 750_000)] == [19, 100, 9375]  # 5 %, 100 steps, the share
    assert [steps(0.0, n) for n in (375, 750_000)] == [0, 0]
    assert steps(0.999, 10) == 9
    with pytest.raises(recipes.ObjectiveError, match="below 1"):
        recipes.Optimiser(lr=1e-3, batch=256, warmup=1)


def test_the_device_is_the_jobs_and_not_the_first_that_mmengine_finds(make_job, pictures, monkeypatch):
    monkeypatch.setattr("mmengine.runner.runner.get_device", lambda: pytest.fail("asked for a device"))
    assert pretrain(make_job("mae"), pictures).is_dir()
