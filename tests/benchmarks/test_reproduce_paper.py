"""Reproduction of published tables; nothing is trained here."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import suite as suites
from benchmarks.commands import reproduce as command
from benchmarks.errors import RequestError
from benchmarks.reproduce_paper import lines, network_options, targets, timm_name, verdicts
from leaderboard.cost import relative_arithmetic
from leaderboard.published import find
from leaderboard.records import Record, write_record

ROOT = Path(__file__).parents[2]
PAPER = suites.get("paper")


def of(name, suite=PAPER):
    return [target for _, found in targets(find(name), suite) for target in found]


def test_what_it_would_run_costs_and_lacks(tmp_path):
    text = "\n".join(lines(find("2210.10615"), PAPER, None))
    assert "UNVERIFIED" in text
    assert "would run: bench run --suite paper --objective maskdistill" in text
    assert "pictures of pre-training" in text
    assert "data: pre-training: missing (no --data-root named), wanted there: imagenet; get it: ImageNet-1K" in text
    (tmp_path / "imagenet").mkdir()
    assert f"data: pre-training: found at {tmp_path / 'imagenet'}" in lines(find("mae"), PAPER, tmp_path)
    assert any("missing, looked at" in line and "coco" in line for line in lines(find("vitpose"), PAPER, tmp_path)) or (
        not any(t.cell for t in of("vitpose"))
    )
    assert "no objective 'dbot' here" in "\n".join(lines(find("dbot"), PAPER, None))


def test_the_cost_knows_views_decoders_and_teachers():
    """Two views and a momentum encoder are no step of supervised training; nothing is called an upper bound."""
    assert relative_arithmetic("supervised") == 1
    assert relative_arithmetic("mae") < 1 < relative_arithmetic("maskdistill") < relative_arithmetic("moco_v3")
    assert relative_arithmetic("nobody") is None
    text = "\n".join(lines(find("mae"), PAPER, None))
    seen = 1600 * 1_281_167
    flops = 6e9 * 17.6 * relative_arithmetic("mae") * seen
    assert f"{seen:,} pictures of pre-training, about {flops:.1e} FLOPs" in text
    assert f"{relative_arithmetic('mae'):.2f} times supervised training a picture" in text
    assert "at most" not in text


def test_the_plan_has_the_papers_backbone_and_pictures():
    found = [target for target in of("mae") if target.cell is not None]
    base = next(t for t in found if t.numbers[0].backbone == "ViT-B/16" and t.numbers[0].family == "finetune")
    assert base.cell.pretraining.images_seen == 1600 * 1_281_167
    assert base.cell.pretraining.suite.model == "vit_base_patch16_224"
    assert base.cell.protocol == "finetune"
    large = next(t for t in found if t.numbers[0].backbone == "ViT-L/16")
    assert large.cell.pretraining.suite.model == "vit_large_patch16_224"
    assert "suite.model=vit_large_patch16_224" in large.command


def test_what_cannot_be_run_says_why():
    reasons = " | ".join(target.obstacle for name in ("mae", "simmim", "dbot") for target in of(name))
    for reason in ("no objective 'dbot'", "no protocol like", "not on iNaturalist", "another size than the suite's"):
        assert reason in reasons
    assert all(bool(target.obstacle) == (target.cell is None) for target in of("mae"))


@pytest.mark.parametrize(("name", "timm"), [
    ("ViT-B/16", "vit_base_patch16_224"), ("Swin-B", "swin_base_patch4_window7_224"),
    ("SwinV2-B", "swinv2_base_window16_256"), ("BEiT-L/16", "beit_large_patch16_224"),
])  # fmt: skip
def test_names_of_networks(name, timm):
    assert timm_name(name) == timm


def made(target, value, metric="top1", **changes):
    """A record of a target's cell."""
    cell = target.cell
    score = dict(value=value, higher_is_better=True, unit="%", main=True, low=0, high=100)
    fields = dict(
        suite="paper", budget=cell.pretraining.budget, objective=cell.pretraining.recipe.name,
        variant=cell.pretraining.variant, backbone=cell.pretraining.suite.model, task=cell.task.name, task_version=1,
        protocol=cell.protocol, seed=0, status="ok", reason=None, metrics={metric: score},
        cost=dict(pretrain_images=1, pretrain_seconds=1.0, train_images=1, seconds=1.0, device="GPU", flops=None,
                  peak_memory_bytes=None),
        environment=dict(python="3", packages={}, git_commit=None, dirty=None, hardware={}),
        fingerprints=dict(cell="c", config="f", data="d", backbone="b"), config=cell.config(),
        started="2026-01-01", finished="2026-01-01",
    )  # fmt: skip
    return Record(**(fields | changes))


def test_verdicts():
    target = next(t for t in of("mae") if t.cell and t.numbers[0].value == 83.6)

    def said(records):
        told = []
        return verdicts([target], records, told.append), "\n".join(told)

    words, text = said([made(target, 83.4)])
    assert words == ["within"]
    assert "theirs 83.6 %, ours 83.4 %, difference -0.2; ± 0.5 is the band (0.5 points): within the interval" in text
    assert said([made(target, 80.0)])[0] == ["differs"]
    assert said([])[0] == ["failed"]
    words, text = said([made(target, 0, status="skipped", reason="no ImageNet", metrics={})])
    assert words == ["failed"]
    assert "skipped: no ImageNet" in text
    words, text = said([made(target, 83.6, metric="other")])
    assert words == ["none"]
    elsewhere = replace(made(target, 83.6), suite="embedded", config={})
    words, text = said([elsewhere])
    assert words == ["none"]
    assert "no verdict: ours is on the data of suite embedded" in text


def test_the_command_runs_the_cells_and_compares(monkeypatch, tmp_path, capsys):
    ran = []

    def computed(cells, runs, *_):
        ran.extend(cells)
        for target in of("mae:classification"):
            if target.cell is not None:
                write_record(runs / target.cell.folder, made(target, 83.5))
        return True

    monkeypatch.setattr("benchmarks.commands.run.computed", computed)
    with pytest.raises(command.typer.Exit) as stop:
        command.reproduce("mae:classification", tmp_path / "new", tmp_path / "runs", tmp_path, "cpu", "paper", False)
    assert stop.value.exit_code == 1  # some differ
    shown = capsys.readouterr().out
    assert "would run" in shown
    assert "difference -0.1; ± 0.5 is the band (0.5 points): within the interval" in shown
    assert len({cell.folder for cell in ran}) == len(ran) >= 3
    ran.clear()
    command.reproduce("mae:classification", tmp_path / "new", tmp_path / "runs", tmp_path, "cpu", "paper", True)
    assert ran == []


def test_refusals(tmp_path):
    def refused(what, suite="paper", output=tmp_path / "new"):
        with pytest.raises(RequestError) as caught:
            command.reproduce(what, output, tmp_path, None, "cpu", suite, False)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "nothing of it can be run on suite paper" in refused("dbot")
    assert "did you mean 'paper'" in refused("mae", "papre")
    assert "holds other records" in refused("mae", output=tmp_path)
    assert "--data-root" in refused("mae")


def test_nothing_heavy_is_loaded():
    code = (
        "import sys; from benchmarks import reproduce_paper, suite; from leaderboard.published import find\n"
        "reproduce_paper.lines(find('mae'), suite.get('paper'), None)\n"
        "print(sorted({'torch', 'timm', 'mmengine', 'mmcv'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(("method", "name", "options"), [
    ("mae", "ViT-B/16", []),
    ("simmim", "ViT-B/16", []),
    ("simmim_v2", "SwinV2-B", ["suite.model=swinv2_base_window12_192"]),
    ("simmim_v2", "SwinV2-S", ["suite.model=swinv2_small_window16_256", "suite.input_size=192",
                               "suite.kwargs.img_size=192", "suite.kwargs.window_size=12"]),
    ("simmim", "swin-base-w6", ["suite.model=swin_base_patch4_window7_224", "suite.input_size=192",
                                "suite.kwargs.img_size=192", "suite.kwargs.window_size=6"]),
    ("supervised", "Swin-B", ["suite.model=swin_base_patch4_window7_224"]),
])  # fmt: skip
def test_networks_of_the_authors(method, name, options):
    assert network_options(method, name, suites.get("paper")) == options


def test_a_swin_of_simmim_is_planned_at_its_size():
    plans = [target.cell.pretraining for name in ("simmim", "revealing") for target in of(name)
             if target.cell and "swin" in target.cell.pretraining.suite.model]
    assert {pretraining.suite.input_size for pretraining in plans if pretraining.recipe.name != "supervised"} == {192}


def test_stages_that_are_not_here_are_obstacles():
    found = [target for target in of("beit-v2") if "intermediate" in (target.numbers[0].note or "")]
    assert found
    assert all("ImageNet-22K" in target.obstacle for target in found)
    plain = [target for target in of("beit-v2") if target.cell]
    assert not any(number.note and "intermediate" in number.note for target in plain for number in target.numbers)


def test_the_head_of_a_protocol_is_set():
    heads = {target.numbers[0].protocol.rpartition(", ")[2]: target.command for target in of("vitpose") if target.cell}
    assert "task.pose.head=simple" in heads["simple head"]
    assert "task.pose.head=classic" in heads["classic head"]
