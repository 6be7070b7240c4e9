"""Collapse of features: the numbers, the rule, and a training that does collapse."""

import json
import math
from dataclasses import replace

import pytest
import torch

from objectives.health import collapse, feature_health, health, untaught
from objectives.loss import CrossEntropy
from objectives.pretrain import build, pretrain


def noise(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def test_numbers_of_known_features():
    full = health(noise(64, 16, 8))
    assert full["effective_rank"] == pytest.approx(8, abs=0.1)
    assert [full[key] for key in ("token_std", "within_std", "between_std")] == pytest.approx([1] * 3, abs=0.05)
    line = health(noise(64, 16, 1) * torch.arange(1.0, 769))
    assert line["effective_rank"] == pytest.approx(1, abs=0.01)
    alike = health(noise(64, 1, 8).expand(64, 16, 8))  # a picture's tokens are one
    assert (alike["within_std"], alike["between_std"] > 0.9) == (0, True)
    blind = health(noise(1, 16, 8).expand(64, 16, 8))  # the picture does not matter
    assert (blind["within_std"] > 0.9, blind["between_std"]) == (True, 0)


@pytest.mark.parametrize(
    ("change", "named"), [
        ({"effective_rank": 1.0}, "effective rank 1, at initialisation 40"),
        ({"within_std": 0.01}, "within a picture 0.01, at initialisation 0.5"),
        ({"between_std": 0.0}, "over pictures 0, at initialisation 0.5"),
        ({"effective_rank": float("nan")}, "effective rank nan"), ({"effective_rank": 7.0}, None),
        ({"token_std": 0.0}, None),
    ],
)
def test_the_rule(change, named):
    start = {"effective_rank": 40.0, "token_std": 0.9, "within_std": 0.5, "between_std": 0.5}
    reason = collapse({**start, **change}, start)
    assert (reason is None) if named is None else (named in reason and "\n" not in reason)


def test_looking_changes_nothing(make_job, pictures):
    objective = build(make_job("data2vec"), pictures).train()
    state = torch.get_rng_state()
    feature_health(objective.student.backbone, pictures, 32)
    assert all(part.training for part in objective.student.backbone.modules())
    assert torch.equal(torch.get_rng_state(), state)


def test_a_constant_target_collapses_and_is_told(make_job, pictures, monkeypatch):
    """As BYOL without a predictor: nothing but the same for all pictures is asked for, of the features themselves."""

    def constant(job, pictures):
        objective = build(job, pictures)
        objective.teacher.forward = lambda images, labels: torch.zeros(len(images), 16, 32)
        objective.head.requires_grad_(False)
        torch.nn.init.eye_(objective.head.predict.weight)
        return objective

    monkeypatch.setattr("objectives.pretrain.build", constant)
    job = make_job("data2vec", images_seen=16 * 60)
    job = replace(job, optimiser=replace(job.optimiser, lr=0.03, batch=256, warmup=0.0))
    about = json.loads((pretrain(job, pictures) / "backbone.json").read_text())
    assert about["features_at_start"]["between_std"] > 0.1
    assert "spread of a place's token over pictures" in about["collapse"]


def test_a_training_that_learns_has_not_collapsed(make_job, pictures):
    about = json.loads((pretrain(make_job("mae", images_seen=320), pictures) / "backbone.json").read_text())
    assert about["collapse"] is None
    assert about["features"].keys() == about["features_at_start"].keys()
    assert about["features"] != about["features_at_start"]


def test_a_loss_at_chance_is_told_and_one_below_it_is_not():
    chance = CrossEntropy(label_smoothing=0.1).at_chance(torch.arange(10).repeat(7))
    assert chance == pytest.approx(math.log(10))
    assert untaught([5.0, 2.31, 2.3] * 4, chance) == "the loss ended at 2.3, that of guessing is 2.3"
    assert untaught([2.3] * 18 + [1.9, 2.0], chance) is None
    assert untaught([1.0] * 18 + [2.4, 2.4], chance) is not None  # what it was in between does not count


def test_chance_is_what_the_best_constant_prediction_scores():
    labels, loss = torch.tensor([0, 0, 0, 1, 2, 2]), CrossEntropy(label_smoothing=0.2)
    best = loss.at_chance(labels)
    logits = torch.zeros(3, requires_grad=True)
    optimiser = torch.optim.LBFGS([logits], max_iter=100)

    def step():
        optimiser.zero_grad()
        value = loss(logits.expand(6, 3), labels, None)
        value.backward()
        return value

    optimiser.step(step)
    assert float(loss(logits.expand(6, 3), labels, None)) == pytest.approx(best, abs=1e-5)


@pytest.mark.parametrize("lr", [0.0, 3e-2])
def test_a_supervised_training_without_a_rate_has_learned_nothing(lr, make_job, pictures):
    job = make_job("supervised", images_seen=16 * 40)
    job = replace(job, optimiser=replace(job.optimiser, lr=lr, batch=256, warmup=0.0, drop_path=0.0))
    about = json.loads((pretrain(job, pictures) / "backbone.json").read_text())
    assert ("untaught" in about) == (lr == 0.0)
