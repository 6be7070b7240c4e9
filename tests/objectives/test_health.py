"""Collapse of features: the numbers, the rule, and a training that does collapse."""

import json
from dataclasses import replace

import pytest
import torch

from objectives.health import collapse, feature_health, health
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
