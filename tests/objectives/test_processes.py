"""Several processes train as one does: draws, gradients, statistics, checkpoints. Gloo, on the CPU."""

import time
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from torch import distributed

from objectives import processes
from objectives import recipe as recipes
from objectives.objective import Objective
from objectives.pretrain import _Steps, pretrain
from objectives.recipe import ObjectiveError
from objectives.student import VisibleStudent

STEPS = 20
# batch norm and a contrast; a decoder; drop path and a moving average; a centre and small crops; draws a picture
NAMES = ["moco_v3", "mae", "data2vec", "dino", "blurred_mask"]
# Adam makes steps of the rounding of what has no gradient (a bias before batch norm), and large ones at this width
SLOWER = {"moco_v3": 0.002, "dino": 0.02}


def losses(jobs, pictures):
    """Loss of each step of each job, the mean over the processes."""
    seen, after = [], _Steps.after_train_iter

    def spy(self, runner, batch_idx, data_batch=None, outputs=None):
        seen.append(processes.mean(outputs["loss"]).item())
        after(self, runner, batch_idx, data_batch, outputs)

    _Steps.after_train_iter = spy
    try:
        found = []
        for job in jobs:
            seen.clear()
            pretrain(job, pictures)
            found.append(list(seen))
        return found
    finally:
        _Steps.after_train_iter = after


def slower(name):
    optimiser = recipes.get(name).optimiser
    return replace(optimiser, lr=SLOWER.get(name, 1) * optimiser.lr)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def make(make_job, cache):
    def jobs(folder, names=NAMES):
        return [
            make_job(name, folder=f"{folder}/{name}", images_seen=STEPS * 16, cache=cache, optimiser=slower(name))
            for name in names
        ]

    return jobs


def test_two_and_four_processes_give_the_losses_of_one(make, pictures, in_processes):
    torch.set_num_threads(1)
    alone = losses(make("1"), pictures)
    assert all(len(row) == STEPS for row in alone)
    for world, names in ((2, NAMES), (4, NAMES[:2])):
        many = in_processes(world, losses, make(str(world), names), pictures)
        for rank in range(world):
            for name, one, several in zip(names, alone, many[rank], strict=False):
                assert several == pytest.approx(one, abs=1e-5), (name, world, rank)
        for one, several in zip(make("1"), make(str(world), names), strict=False):
            a, b = (load_file(job.folder / "backbone.safetensors") for job in (one, several))
            same = all(torch.allclose(a[key], b[key], atol=1e-4) for key in a)
            assert same or one.objective in SLOWER, (one.objective, world)
            assert (one.folder / "log.jsonl").read_text().count("\n") == 2
            assert not list(several.folder.glob("checkpoint-*"))


def crowded(jobs, pictures, most):
    """:func:`losses` where the memory of process 1 holds ``most`` pictures at a time, from the third step on."""
    forward = VisibleStudent.forward
    calls = []

    def tight(self, images, mask=None, **places):
        calls.append(len(images))
        if len(calls) > 2 and distributed.get_rank() == 1 and len(images) > most:
            raise torch.OutOfMemoryError("CUDA out of memory (of the test)")
        return forward(self, images, mask, **places)

    VisibleStudent.forward = tight
    try:
        return losses(jobs, pictures), calls
    finally:
        VisibleStudent.forward = forward


def test_memory_that_runs_out_in_one_process_divides_the_batch_in_all(make_job, pictures, in_processes):
    torch.set_num_threads(1)
    one, two = (make_job("mae", folder=folder, images_seen=8 * 16) for folder in "12")
    alone = losses([one], pictures)
    for found, calls in in_processes(2, crowded, [two], pictures, 3):
        assert found[0] == pytest.approx(alone[0], abs=1e-5)
        assert calls[:2] == [8, 8]
        assert calls[-4:] == [2, 2, 2, 2]  # 8 and 4 did not fit into process 1, which process 0 was told
    a, b = (load_file(job.folder / "backbone.safetensors") for job in (one, two))
    assert all(torch.allclose(a[key], b[key], atol=1e-4) for key in a)


def gradients(job, pictures):
    """Of the first step, clipped where the recipe clips."""
    kept, step = [], torch.optim.AdamW.step

    def spy(self, *arguments, **more):
        if not kept:
            kept.extend(None if p.grad is None else p.grad.clone() for g in self.param_groups for p in g["params"])
        return step(self, *arguments, **more)

    torch.optim.AdamW.step = spy
    try:
        pretrain(job, pictures)
        return kept
    finally:
        torch.optim.AdamW.step = step


@pytest.mark.parametrize("name", ["moco_v3", "dino"])
def test_the_gradient_is_that_of_the_whole_batch(name, make_job, pictures, in_processes):
    one, two = (make_job(name, folder=folder, images_seen=16) for folder in "ab")
    wanted = gradients(one, pictures)
    for found in in_processes(2, gradients, two, pictures):
        assert [g is None for g in found] == [g is None for g in wanted]
        scale = max(g.abs().max() for g in wanted if g is not None)
        assert all(torch.allclose(a, b, atol=1e-5 * scale) for a, b in zip(found, wanted, strict=True) if b is not None)


def rows(count):
    generator = torch.Generator().manual_seed(0)
    whole = torch.arange(2 * 8.0).view(16, 1)  # two views of eight pictures
    with processes.sharing(8 // distributed.get_world_size()):
        mine = processes.share(whole)
        drawn = processes.draw(lambda n: torch.rand(n, generator=generator), count)
        grows = mine.clone().requires_grad_()
        (processes.gather(grows) * whole).sum().backward()
        return (mine, drawn, torch.equal(processes.gather(mine), whole), grows.grad,
                processes.anywhere(distributed.get_rank() == 1), processes.mean(mine.mean()).item())


def test_shares_put_together_are_the_whole(in_processes):
    found = in_processes(2, rows, 4)
    assert [part[0].flatten().tolist() for part in found] == [[0, 2, 4, 6, 8, 10, 12, 14], [1, 3, 5, 7, 9, 11, 13, 15]]
    whole = torch.rand(8, generator=torch.Generator().manual_seed(0))
    assert all(torch.equal(part[1], whole[rank::2]) for rank, part in enumerate(found))
    for mine, _, same, gradient, anywhere, mean in found:
        assert same
        assert torch.equal(gradient, 2 * mine)  # every process compared it
        assert anywhere
        assert mean == 7.5
    assert torch.equal(processes.share(found[0][0]), found[0][0])


def interrupted(job, pictures):
    """Train to the first checkpoint in this group, then raise."""
    save = _Steps._save

    def stop(self, runner, step):
        save(self, runner, step)
        raise KeyboardInterrupt

    _Steps._save = stop
    try:
        pretrain(job, pictures)
    except KeyboardInterrupt:
        return step_of(job)
    finally:
        _Steps._save = save


def step_of(job):
    return sorted(path.name[:19] for path in job.folder.glob("checkpoint-*.pt"))


def test_a_checkpoint_goes_on_with_another_number_of_processes(make, pictures, in_processes, monkeypatch):
    monkeypatch.setattr("objectives.pretrain.CHECKPOINT_EVERY", 10)
    monkeypatch.setattr("objectives.pretrain.CHECKPOINT_SHARE", 1e9)
    (whole,), (job,) = make("whole", ["data2vec"]), make("halves", ["data2vec"])
    pretrain(whole, pictures)
    assert in_processes(2, interrupted, job, pictures)[0] == ["checkpoint-00000010"]
    pretrain(job, pictures)
    a, b = (load_file(folder / "backbone.safetensors") for folder in (whole.folder, job.folder))
    assert all(torch.allclose(a[key], b[key], atol=1e-4) for key in a)


def test_divided_weights_train_as_whole_ones(make, pictures, in_processes, monkeypatch):
    monkeypatch.setattr("objectives.pretrain.CHECKPOINT_EVERY", 10)
    monkeypatch.setattr("objectives.pretrain.CHECKPOINT_SHARE", 1e9)
    (one,), (job,) = make("one", ["beit"]), make("divided", ["beit"])
    job = replace(job, sharded=True)
    alone = losses([one], pictures)
    assert in_processes(2, interrupted, job, pictures)[0] == ["checkpoint-00000010"]
    (rest,), _ = in_processes(2, losses, [job], pictures)
    assert rest == pytest.approx(alone[0][10:], abs=1e-5)
    a, b = (load_file(folder / "backbone.safetensors") for folder in (one.folder, job.folder))
    assert all(torch.allclose(a[key], b[key], atol=1e-4) for key in a)


def test_divided_weights_cannot_be_averaged(make, pictures, in_processes):
    (job,) = make("average", ["data2vec"])
    with pytest.raises(ObjectiveError, match="--sharded"):
        in_processes(2, losses, [replace(job, sharded=True)], pictures)


def bad(job, pictures):
    """A loss that is not a number in one process only."""
    loss = Objective._loss

    def wrong(self, *args, **kwargs):
        return loss(self, *args, **kwargs) * (float("nan") if distributed.get_rank() == 1 else 1)

    Objective._loss = wrong
    with pytest.raises(ObjectiveError, match="the loss is nan at step 1") as error:
        pretrain(job, pictures)
    return str(error.value)


def test_all_stop_where_one_diverges_and_the_whole_batch_is_kept(make, pictures, in_processes):
    (job,) = make("bad", ["mae"])
    assert len(set(in_processes(2, bad, job, pictures))) == 1
    assert len(load_file(job.folder / "diverged.safetensors")["index"]) == 16


def _checkpoints(job, pictures, seconds):
    """Steps at which process 0 wrote one, each taking so long; the others only hand theirs in."""
    from objectives import checkpoint
    from objectives import pretrain as module

    kept, save = [], checkpoint.save

    def slow(folder, step, state):
        time.sleep(seconds)
        kept.append(step)
        return save(folder, step, state)

    checkpoint.save, module.CHECKPOINT_EVERY, module.CHECKPOINT_SHARE = slow, 1, 0.01
    pretrain(job, pictures)
    return kept


def test_checkpoints_of_several_processes_take_their_share_at_most(make_job, pictures, in_processes):
    job = make_job("mae", folder="together", images_seen=64, batch_size=8)
    assert in_processes(2, _checkpoints, job, pictures, 1.0) == [[1], []]
