"""Fine-tuning and scoring by several processes: the numbers of one, each test item counted once."""

import json

import pytest
import torch
from torch import distributed, nn

from downstream import engine
from downstream.processes import BatchNormAcross, divided, part
from downstream.task import TaskError, evaluate


def scored(jobs):
    return [evaluate(job) for job in jobs]


def test_metrics_of_a_test_set_that_does_not_divide(make_job, in_processes, monkeypatch):
    """Nothing is trained, so that only the division of the test set could change a number."""
    monkeypatch.setattr(engine, "_train_all", lambda *arguments: (24, {}))
    tasks = ("classification", "segmentation", "pose", "depth")
    jobs = [make_job(task, "finetune", test_limit=7, test_batch=3) for task in tasks]
    alone = scored(jobs)
    for world in (2, 4):
        first = in_processes(world, scored, jobs)[0]
        for job, one, many in zip(jobs, alone, first, strict=True):
            assert many.metrics == pytest.approx(one.metrics, rel=1e-6), (job.task, world)
            for name, items in one.items.items():
                assert many.items[name] == pytest.approx(items, rel=1e-6)
    assert len(alone[-1].items["rmse"]) == 7


def test_two_processes_fine_tune_as_one(make_job, in_processes):
    job = make_job("classification", "finetune", epochs=4, lr=1e-3, drop_path_rate=0.0, batch_size=12)
    (one,) = scored([job])
    log = (job.work_dir / "log.jsonl").read_text()
    ((two,), _) = in_processes(2, scored, [job])
    assert two.metrics == one.metrics
    losses = [json.loads(text)["train_loss"] for text in (log, (job.work_dir / "log.jsonl").read_text())]
    assert losses[1] == pytest.approx(losses[0], rel=0.05)  # each process mirrors pictures by draws of its own


def test_a_batch_that_does_not_divide_is_refused(make_job, in_processes):
    job = make_job("depth", "finetune", batch_size=3)
    with pytest.raises(TaskError, match=r"3 does not divide among 2 processes; set task\.depth\.batch_size=4"):
        in_processes(2, divided, job, 3)


def normed(x):
    rank, world = distributed.get_rank(), distributed.get_world_size()
    norm = BatchNormAcross.of(nn.BatchNorm2d(3))
    mine = x[rank::world].clone().requires_grad_()
    out = norm(mine)
    (out * torch.arange(out.numel()).view_as(out).sin() * (1 + rank)).sum().backward()
    return out.detach(), mine.grad, norm.running_mean, norm.running_var


def test_batch_norm_across_processes_is_that_of_the_whole_batch(in_processes):
    x = torch.rand(8, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    found = in_processes(2, normed, x)
    norm, whole = nn.BatchNorm2d(3), x.clone().requires_grad_()
    out = norm(whole)
    weight = torch.arange(out[::2].numel()).view_as(out[::2]).sin()
    ((out[::2] * weight).sum() + 2 * (out[1::2] * weight).sum()).backward()
    for rank, (values, gradient, mean, variance) in enumerate(found):
        assert torch.allclose(values, out.detach()[rank::2], atol=1e-6)
        assert torch.allclose(gradient, whole.grad[rank::2], atol=1e-5)
        assert torch.allclose(mean, norm.running_mean)
        assert torch.allclose(variance, norm.running_var)


def test_the_only_process_has_the_whole_test_set():
    assert part(7) == range(7)
