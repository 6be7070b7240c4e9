"""What the protocols do beyond training one head: neighbours, grids of heads, attention, schedules."""

import json
import re
from dataclasses import replace

import pytest
import torch
from mmengine.model import BaseModel
from mmengine.optim import OptimWrapper
from torch import nn
from torch.utils.data import Dataset

from downstream import engine
from downstream.backbone import TimmBackbone
from downstream.neighbours import Memory, agreement, patch_shares
from downstream.optimise import RiseFallLR, layer_groups, optimise, optimiser, schedule
from downstream.task import TASKS, TaskError, evaluate


def test_votes_of_neighbours_are_dinos():
    torch.manual_seed(0)
    keys, labels = nn.functional.normalize(torch.randn(40, 6), dim=1), torch.randint(0, 3, (40,))
    memory = Memory(3)
    memory.fill(keys, labels)
    memory.k, memory.temperature = 7, 0.1
    queries = nn.functional.normalize(torch.randn(5, 6), dim=1)
    found = memory(queries)
    for query, votes in zip(queries, found, strict=True):
        cosines = keys @ query
        nearest = cosines.argsort(descending=True)[:7]
        expected = torch.zeros(3)
        for i in nearest:
            expected[labels[i]] += (cosines[i] / 0.1).exp()
        assert torch.allclose(votes, expected / expected.sum(), atol=1e-5)
    soft = Memory(3)
    soft.fill(keys, nn.functional.one_hot(labels, 3).float())
    soft.k, soft.temperature = 7, 0.1
    assert torch.allclose(soft(queries), found, atol=1e-6)


def test_a_patch_holds_the_shares_of_its_pixels():
    labels = torch.tensor([[0, 0, 1, 1], [0, 2, 1, 255], [255, 255, 2, 2], [255, 255, 2, 0]])
    shares = patch_shares(labels, (2, 2), 3, 255)
    assert torch.allclose(shares, torch.tensor([[0.75, 0, 0.25], [0, 1, 0], [0, 0, 0], [0.25, 0, 0.75]]))


def test_agreement_is_accuracy_or_mean_iou():
    guess, truth = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 1, 1])
    assert agreement(guess, truth, 3, balanced=False) == pytest.approx(3 / 4)
    assert agreement(guess, truth, 3, balanced=True) == pytest.approx((1 / 2 + 2 / 3) / 2)  # class 2 never occurs


@pytest.mark.parametrize(("task", "memory"), [("classification", 12), ("segmentation", 24)])
def test_neighbours_learn_nothing_and_record_what_they_chose(task, memory, make_job):
    job = make_job(task, "knn", k=[1, 3], temperature=[0.05, 0.5], memory=memory)
    outcome = evaluate(job)
    assert outcome.train_images == 12  # each picture once
    assert outcome.chosen["k"] in (1, 3)
    assert outcome.chosen["temperature"] in (0.05, 0.5)
    assert outcome.chosen["memory"] == memory
    assert len((job.work_dir / "log.jsonl").read_text().splitlines()) == 4
    assert outcome.metrics[TASKS[task].metrics[0].name] > 100 / 6  # the quadrant tells; chance is less


def test_one_neighbour_of_itself_is_always_right(make_job, data, tmp_path):
    import shutil

    shutil.copytree(data, tmp_path / "same")
    shutil.rmtree(tmp_path / "same/imagenet/val")
    shutil.copytree(tmp_path / "same/imagenet/train", tmp_path / "same/imagenet/val")
    outcome = evaluate(make_job("classification", "knn", root=tmp_path / "same", k=1))
    assert outcome.metrics["top1"] == 100


@pytest.mark.parametrize("setting", [{"k": 0}, {"temperature": 0.0}, {"optimizer": "Adm"}, {"schedule": "cosin"},
                                     {"accumulate": 0}])
def test_values_that_make_no_sense_are_one_line(setting, make_job):
    with pytest.raises(TaskError, match=next(iter(setting))) as caught:
        evaluate(make_job("classification", "knn", **setting))
    assert "\n" not in str(caught.value)


def test_a_grid_of_heads_is_each_head_alone(make_job, monkeypatch):
    """Every classifier of the grid ends where it would have ended alone, so one pass replaces all."""
    ends = {}

    def keep(name):
        def before_test(self, runner):
            ends[name] = {k: v.clone() for k, v in runner.model.state_dict().items()}
        monkeypatch.setattr(engine.Watch, "before_test", before_test)

    rates = [1e-3, 1e-2]
    keep("grid")
    job = make_job("classification", lr=rates, layers=(0, -1), epochs=3)
    outcome = evaluate(job)
    assert outcome.chosen["lr"] in rates
    assert outcome.chosen["layer"] in (0, -1)
    assert outcome.train_images == 10 * 3
    rows = [json.loads(line) for line in (job.work_dir / "log.jsonl").read_text().splitlines()]
    assert [(row["layer"], row["lr"]) for row in rows] == [(0, 1e-3), (0, 1e-2), (-1, 1e-3), (-1, 1e-2)]
    best = min(rows, key=lambda row: row["held_out_loss"])
    assert (best["layer"], best["lr"]) == (outcome.chosen["layer"], outcome.chosen["lr"])
    for number, lr in enumerate(rates):
        keep(lr)
        evaluate(make_job("classification", lr=[lr], layers=(0, -1), epochs=3))
        for layer in (0, 1):
            name = f"head.weights.{layer}"
            assert torch.allclose(ends["grid"][f"{name}.{number}"], ends[lr][f"{name}.0"], atol=1e-6)
            assert not torch.equal(ends["grid"][f"{name}.0"], ends["grid"][f"{name}.1"])


@pytest.mark.parametrize(
    ("task", "settings"),
    [("segmentation", {}), ("depth", {}), ("pose", {"head": "linear"}), ("pose", {"head": "classic", "deconv": (8,)})],
)
def test_a_grid_of_dense_heads_is_each_head_alone(task, settings, make_job, monkeypatch):
    """All rates and layers in one pass over the features; each head ends where it would have ended alone."""
    ends, calls = {}, []

    def keep(name):
        def before_test(self, runner):
            ends[name] = {k: v.clone() for k, v in runner.model.state_dict().items() if "heads." in k}
        monkeypatch.setattr(engine.Watch, "before_test", before_test)

    forward = TimmBackbone.forward
    monkeypatch.setattr(TimmBackbone, "forward", lambda self, x: calls.append(len(x)) or forward(self, x))
    rates, layers = [1e-3, 1e-2], (0, -1)
    keep("grid")
    job = make_job(task, lr=rates, layers=layers, test_batch=8, flip_test=False, **settings) if task == "pose" else (
        make_job(task, lr=rates, layers=layers, test_batch=8, **settings))
    outcome = evaluate(job)
    assert sum(calls) == 12 + 8  # each training picture once, and the test
    rows = [json.loads(line) for line in (job.work_dir / "log.jsonl").read_text().splitlines()]
    assert [(row["layer"], row["lr"]) for row in rows] == [(0, 1e-3), (0, 1e-2), (-1, 1e-3), (-1, 1e-2)]
    best = min(rows, key=lambda row: row["held_out_loss"])
    assert outcome.chosen == {"layer": best["layer"], "lr": best["lr"]}
    keep("alone")
    evaluate(make_job(task, lr=rates[1:], layers=layers, **settings))
    alone = {k: v for k, v in ends["alone"].items() if v.is_floating_point()}
    for key, value in alone.items():
        _, prefix, number, rest = key.partition("heads.")[0], "heads.", *key.partition("heads.")[2].split(".", 1)
        mine = ends["grid"][key.partition("heads.")[0] + f"{prefix}{2 * int(number) + 1}.{rest}"]
        assert torch.allclose(mine, value, atol=1e-5), key
    moved = [k for k in ends["grid"] if k.split("heads.")[1].startswith("0.") and k.endswith("weight")]
    assert any(not torch.equal(ends["grid"][k], ends["grid"][k.replace("heads.0.", "heads.1.")]) for k in moved)


def test_features_beyond_the_memory_lie_on_the_disk(make_job, monkeypatch):
    """The same numbers, no file left, and the maps are views of one."""
    from downstream import features

    made = []
    cache = features.cache
    monkeypatch.setattr(features, "cache", lambda *a: made.append(cache(*a)) or made[-1])
    monkeypatch.setattr(features, "LARGE", 64)
    jobs = [make_job("depth", layers=(0, -1), cache_mb=limit) for limit in (8192, 0)]
    in_memory, on_disk = evaluate(jobs[0]), evaluate(jobs[1])
    assert in_memory == on_disk
    for a, b in zip(made[0].maps, made[1].maps, strict=True):
        assert torch.equal(a, b)
    for a, b in zip(made[0].samples, made[1].samples, strict=True):
        assert torch.equal(a.gt_depth_map.data, b.gt_depth_map.data)
    assert {file.name for file in jobs[1].work_dir.iterdir()} == {"log.jsonl"}


def test_pooled_features_are_kept_pooled(make_job, monkeypatch):
    from downstream import features

    made = []
    cache = features.cache
    monkeypatch.setattr(features, "cache", lambda *a: made.append(cache(*a)) or made[-1])
    evaluate(make_job("classification", epochs=1))
    evaluate(make_job("classification", epochs=1, layers=(0, -1), pool="token"))
    assert [m.shape for found in made for m in found.maps] == [(12, 32)] * 3


def test_what_was_not_chosen_is_not_recorded_as_chosen(make_job):
    job = make_job("depth", lr=1e-3, epochs=1)
    assert evaluate(job).chosen == {}
    (row,) = [json.loads(line) for line in (job.work_dir / "log.jsonl").read_text().splitlines()]
    assert set(row) == {"lr", "train_loss"}  # nothing was held out
    assert evaluate(make_job("depth", lr=[1e-3, 1e-2], epochs=1)).chosen["lr"] in (1e-3, 1e-2)


def test_attention_sees_where_a_token_lies(make_job):
    """The quadrant tells the class: the mean of the tokens hides it less than attention finds it."""
    outcome = evaluate(make_job("classification", "attentive", epochs=30, lr=3e-3))
    assert outcome.metrics["top1"] >= 75


def test_heads_that_do_not_divide_are_refused(make_job):
    with pytest.raises(TaskError, match="attention_heads 5"):
        evaluate(make_job("depth", "attentive", attention_heads=5))


def test_features_that_are_not_kept_give_the_same_head(make_job, monkeypatch):
    """Without the augmentation (no picture is mirrored) it makes no difference when the backbone runs."""
    monkeypatch.setattr("downstream.common.np.random.rand", lambda: 0.9)
    kept, anew = (evaluate(make_job("depth", cache=cache, epochs=2)) for cache in (True, False))
    assert anew.metrics == pytest.approx(kept.metrics, rel=1e-4)
    assert anew.chosen == kept.chosen
    assert anew.train_images == 2 * 2 * 10  # two rates, the held-out tenth is not trained on


class Line(BaseModel):
    """Least squares, to look at single steps of the optimiser."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([[0.5, -1.0], [2.0, 0.1]]))
        self.bias = nn.Parameter(torch.tensor([0.3, -0.2]))

    def forward(self, inputs, data_samples=None, mode="loss"):
        guess = torch.stack(inputs) @ self.weight.T + self.bias
        return {"loss": (guess - torch.stack(data_samples)).square().mean()}


class Points(Dataset):
    def __init__(self):
        self.x, self.y = torch.randn(16, 2), torch.randn(16, 2)

    def __len__(self):
        return 16

    def __getitem__(self, index):
        return {"inputs": self.x[index], "data_samples": self.y[index]}


CONSTANT = {**engine.COMMON, "schedule": "steps", "warmup": 0, "clip": None, "lr": 0.05, "weight_decay": 0.1}


@pytest.mark.parametrize("kind", ["SGD", "AdamW", "LARS"])
def test_two_accumulated_batches_are_one_of_twice_the_size(kind, make_job):
    ends = []
    torch.manual_seed(0)
    data = Points()
    for size, accumulate in ((8, 1), (4, 2), (4, 1)):
        model = Line()
        chosen = {**CONSTANT, "optimizer": kind, "batch_size": size, "accumulate": accumulate, "epochs": 3}
        with engine.quiet("mmpretrain"):
            optimise(model, data, make_job("depth"), chosen, [{"params": list(model.parameters()), "lr": 0.05}], "try")
        ends.append(model.weight.detach())
    assert torch.allclose(ends[0], ends[1], atol=1e-6)
    assert not torch.allclose(ends[0], ends[2], atol=1e-3)
    assert not torch.allclose(ends[0], Line().weight, atol=1e-3)


def test_a_step_of_lars_by_hand():
    """MAE's probe: matrices by lr x .001 |w| / |g| with the decay in g, biases by plain lr without either."""
    model = Line()
    weight, bias = model.weight.detach().clone(), model.bias.detach().clone()
    chosen = {**CONSTANT, "optimizer": "LARS"}
    made = optimiser(chosen, [{"params": list(model.parameters()), "lr": 2.0}])
    slope = torch.tensor([[1.0, 2.0], [-3.0, 0.5]])
    model.weight.grad, model.bias.grad = slope.clone(), torch.tensor([0.5, -0.25])
    made.step()
    norm, full = weight.norm(), slope + 0.1 * weight
    local = 1e-3 * norm / (slope.norm() + 0.1 * norm)
    assert torch.allclose(model.weight, weight - 2.0 * local * full, atol=1e-6)
    assert torch.allclose(model.bias, bias - 2.0 * torch.tensor([0.5, -0.25]), atol=1e-6)


# --- layer decay and schedules ----------------------------------------------------------------------------------------


def test_memory_that_runs_out_in_fine_tuning_halves_the_batch(make_job, monkeypatch, capsys):
    """Same pictures, same gradients (but for batch norm, left out here), as many steps."""
    ends, steps, step, forward = [], [], torch.optim.SGD.step, TimmBackbone.forward

    def tight(self, x):
        if self.training and len(x) > most:
            raise torch.OutOfMemoryError("CUDA out of memory (of the test)")
        return forward(self, x)

    def counted(self, *arguments):
        steps.append(1)
        return step(self, *arguments)

    def before_test(self, runner):
        ends.append({name: value.clone() for name, value in runner.model.state_dict().items()})

    monkeypatch.setattr(torch.nn.BatchNorm1d, "forward", lambda self, x: x)
    monkeypatch.setattr(TimmBackbone, "forward", tight)
    monkeypatch.setattr(torch.optim.SGD, "step", counted)
    monkeypatch.setattr(engine.Watch, "before_test", before_test)
    job = make_job("classification", "finetune", batch_size=4, epochs=2, optimizer="SGD", lr=1e-2, warmup=0,
                   schedule="steps", drop_path_rate=0.0)
    most = 4
    whole = evaluate(job)
    made, most = len(steps), 1
    parts = evaluate(job)
    assert (made, len(steps)) == (6, 12)
    assert parts.chosen == {**whole.chosen, "micro_batch": 1}
    assert parts.train_images == whole.train_images
    assert all(torch.allclose(ends[0][name], ends[1][name], atol=1e-5) for name in ends[0])
    lines = capsys.readouterr().err.splitlines()
    assert [re.search(r"micro-batches of \d of 4", line).group() for line in lines] == [
        "micro-batches of 2 of 4", "micro-batches of 1 of 4"
    ]
    most = 0
    with pytest.raises(TaskError, match="out of memory with one picture at a time"):
        evaluate(job)
    with pytest.raises(TaskError, match="out of memory with 3 pictures at a time, which do not halve"):
        evaluate(replace(job, settings={**job.settings, "batch_size": 6}))


def test_layer_decay_of_swin_counts_each_merging_as_a_layer(make_backbone):
    kwargs = {"img_size": 64, "window_size": 2, "embed_dim": 16, "depths": [1, 2, 1, 1], "num_heads": [1, 2, 4, 8]}
    model = nn.Module()
    model.backbone = TimmBackbone(make_backbone("swinv2_tiny_window8_256", kwargs), frozen=False, input_size=64)
    model.head = nn.Linear(2, 2)
    groups = layer_groups(model, lr=1.0, weight_decay=0.1, decay=0.5)
    rate = {id(p): group["lr"] for group in groups for p in group["params"]}
    named = dict(model.named_parameters())
    layers = 5 + 3 + 2  # blocks, mergings, patch embedding and head (MIM-Depth-Estimation: models/optimizer.py)
    for name, layer in {
        "backbone.net.patch_embed.proj.weight": 0, "backbone.net.layers.0.blocks.0.mlp.fc1.weight": 1,
        "backbone.net.layers.1.downsample.reduction.weight": 2, "backbone.net.layers.1.blocks.0.mlp.fc1.weight": 3,
        "backbone.net.layers.3.blocks.0.mlp.fc1.weight": 8, "head.weight": 9,
    }.items():
        assert rate[id(named[name])] == pytest.approx(0.5 ** (layers - 1 - layer)), name
    assert all(p.ndim > 1 for group in groups if group["weight_decay"] for p in group["params"])


@pytest.mark.parametrize(
    ("timm_name", "kwargs", "layers"), [
        ("beit_base_patch16_224", {"use_shared_rel_pos_bias": True, "use_rel_pos_bias": False},
         {"rel_pos_bias.relative_position_bias_table": 3, "blocks.1.mlp.fc1.weight": 2}),
        ("vit_relpos_small_patch16_224", {"shared_rel_pos": True}, {"shared_rel_pos.mlp.fc1.weight": 3}),
        ("vit_base_patch16_clip_224", {}, {"norm_pre.weight": 0, "norm.weight": 3, "pos_embed": 0}),
    ],
)
def test_layer_decay_goes_by_the_names_of_each_family(timm_name, kwargs, layers, make_backbone):
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, **kwargs}
    model = nn.Module()
    model.backbone = TimmBackbone(make_backbone(timm_name, sizes), frozen=False)
    rate = {id(p): group["lr"] for group in layer_groups(model, 1.0, 0.1, 0.5) for p in group["params"]}
    named = dict(model.backbone.net.named_parameters())
    assert {name: rate[id(named[name])] for name in layers} == {name: 0.5 ** (3 - n) for name, n in layers.items()}


@pytest.mark.parametrize(
    ("timm_name", "kwargs", "exempt"), [
        ("swin_tiny_patch4_window7_224", {"window_size": 2}, ("relative_position_bias_table",)),
        ("swinv2_tiny_window8_256", {"window_size": 2}, ("logit_scale", "cpb_mlp.0.weight", "cpb_mlp.2.weight")),
    ],
)
def test_relative_positions_of_a_swin_are_not_decayed(timm_name, kwargs, exempt, make_backbone):
    sizes = {"img_size": 64, "embed_dim": 16, "depths": [1, 1, 1, 1], "num_heads": [1, 2, 4, 8], **kwargs}
    model = nn.Module()
    model.backbone = TimmBackbone(make_backbone(timm_name, sizes), frozen=False, input_size=64)
    groups = layer_groups(model, lr=1.0, weight_decay=0.1, decay=0.5)
    decayed = {id(p) for group in groups if group["weight_decay"] for p in group["params"]}
    names = [name for name, p in model.named_parameters() if id(p) in decayed]
    assert any(name.endswith("mlp.fc1.weight") for name in names)
    assert not [name for name in names if name.endswith(exempt)]


def rates_of(make, steps):
    """Learning rates of ``steps`` optimiser calls under the schedulers that ``make(wrapper)`` gives."""
    weight = nn.Parameter(torch.zeros(1))
    wrapper = OptimWrapper(torch.optim.SGD([weight], lr=1.0))
    schedulers, found = make(wrapper), []
    for _ in range(steps):
        found.append(wrapper.param_groups[0]["lr"])
        wrapper.optimizer.step()
        for scheduler in schedulers:
            scheduler.step()
    return found


def test_the_depth_recipe_rises_and_falls_with_power_nine_tenths():
    found = rates_of(lambda wrapper: [RiseFallLR(wrapper, end=100, start=0.06)], 100)
    assert found[0] == pytest.approx(0.06)
    assert found[25] == pytest.approx(0.06 + 0.94 * 0.5**0.9)
    assert found[50] == pytest.approx(1.0)
    assert found[75] == pytest.approx(1.0 - 0.94 * 0.5**0.9)
    assert found[99] == pytest.approx(0.06, abs=0.03)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("cosine", {10: 1.0, 55: 0.5, 99: 0.0}), ("poly", {10: 1.0, 55: 0.5, 98: 0.011}),
     ("steps", {10: 1.0, 79: 1.0, 81: 0.1, 96: 0.01})],
)
def test_schedules_warm_up_and_fall(kind, expected):
    from mmengine.registry import PARAM_SCHEDULERS

    chosen = {"schedule": kind, "warmup": 0.1, "min_lr": 0.0, "drops": (0.8, 0.95)}
    found = rates_of(
        lambda wrapper: [PARAM_SCHEDULERS.build({**s, "optimizer": wrapper}) for s in schedule(chosen, 100)], 100
    )
    assert found[0] == pytest.approx(1e-3)
    for step, value in expected.items():
        assert found[step] == pytest.approx(value, abs=0.01), step


def test_samples_that_lie_on_the_device_are_not_copied():
    """mmengine's ``to`` copies a sample, number by number, wherever it lies: more than a small head's step costs."""
    from mmengine.structures import BaseDataElement

    from downstream.features import CachedFeatures, PassPreprocessor

    samples = [BaseDataElement(label=torch.tensor([i])) for i in range(3)]
    data = CachedFeatures([torch.arange(6.0).view(3, 2)], samples).part([2, 0])
    batch = PassPreprocessor()(data.__getitems__([0, 1]))
    assert batch["inputs"][0].tolist() == [[4.0, 5.0], [0.0, 1.0]]
    assert [sample is samples[i] for sample, i in zip(batch["data_samples"], (2, 0), strict=True)] == [True, True]
    there = PassPreprocessor().to("meta")(data.__getitems__([0, 1]))
    assert {there["inputs"][0].device.type, there["data_samples"][0].label.device.type} == {"meta"}
