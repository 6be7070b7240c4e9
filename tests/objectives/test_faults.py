"""What a training does when it is killed, told to stop, diverges, or runs out of memory or disk."""

import errno
import json
import os
import signal
import time
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from objectives import checkpoint
from objectives import recipe as recipes
from objectives.files import whole
from objectives.interruption import Deferred
from objectives.pretrain import build, prepare, pretrain
from objectives.recipe import ObjectiveError

TRAINED = sorted(name for name, recipe in recipes.recipes().items() if recipe.trains)


def weights(folder):
    return load_file(folder / "backbone.safetensors")


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def stopped_after(step, monkeypatch, job, pictures, number=signal.SIGTERM):
    """Train until a signal comes in ``step``."""
    from objectives.objective import Objective

    after = Objective.after_step

    def send(self, now):
        after(self, now)
        if now == step:
            os.kill(os.getpid(), number)

    with monkeypatch.context() as patch:
        patch.setattr(Objective, "after_step", send)
        with pytest.raises(KeyboardInterrupt):
            pretrain(job, pictures)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_its_step_and_the_rest_is_bit_equal(number, make_job, pictures, monkeypatch):
    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    whole_run = pretrain(make_job("mae", folder="whole", images_seen=160), pictures)
    job = make_job("mae", folder="halves", images_seen=160)
    stopped_after(3, monkeypatch, job, pictures, number)
    assert [path.name[:19] for path in checkpoint.found(job.folder)] == ["checkpoint-00000003"]
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == before
    assert same(weights(whole_run), weights(pretrain(job, pictures)))
    assert (job.folder / "log.jsonl").read_text() == (whole_run / "log.jsonl").read_text()
    assert not checkpoint.found(job.folder)


def test_seconds_are_those_of_all_parts(make_job, pictures, monkeypatch):
    from objectives.objective import Objective

    after = Objective.after_step
    job = make_job("mae", images_seen=160)
    with monkeypatch.context() as patch:
        patch.setattr(Objective, "after_step", lambda self, now: (time.sleep(0.5), after(self, now)))
        stopped_after(3, patch, job, pictures)
    about = json.loads((pretrain(job, pictures) / "backbone.json").read_text())
    assert about["seconds"] > 1.5


@pytest.mark.parametrize(("name", "stages"), [("maskdistill", {"targets"}), ("beit", {"tokenizer", "targets"})])
def test_what_seeds_share_is_told_apart_and_to_all_of_them(name, stages, make_job, pictures, tmp_path):
    told = []
    for seed in (0, 1):
        job = make_job(name, folder=f"seed{seed}", images_seen=96, seed=seed, cache=tmp_path / "cache")
        told.append(json.loads((pretrain(job, pictures) / "backbone.json").read_text()))
    assert told[0]["shared_seconds"] == told[1]["shared_seconds"]
    assert told[0]["shared_seconds"].keys() == stages
    assert all(seconds > 0 for seconds in told[0]["shared_seconds"].values())


def test_a_second_signal_leaves_at_once():
    child = os.fork()
    if child == 0:  # pragma: no cover - the child ends here
        with Deferred():
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 130


@pytest.mark.parametrize("harm", ["cut", "flipped", "empty", "pickle"])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(harm, make_job, pictures, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("objectives.pretrain.CHECKPOINT_EVERY", 2)
    monkeypatch.setattr("objectives.pretrain.CHECKPOINT_SHARE", 1e9)
    whole_run = pretrain(make_job("mae", folder="whole", images_seen=160), pictures)
    job = make_job("mae", folder="halves", images_seen=160)
    stopped_after(7, monkeypatch, job, pictures)
    older, last = checkpoint.found(job.folder)
    assert (older.name[:19], last.name[:19]) == ("checkpoint-00000006", "checkpoint-00000007")
    data = bytearray(last.read_bytes())
    if harm == "pickle":
        torch.save({"model": _Evil(tmp_path / "executed")}, last)
    else:
        data[len(data) // 2] ^= 1
        last.write_bytes({"cut": data[: len(data) // 2], "flipped": data, "empty": b""}[harm])
    capsys.readouterr()
    assert same(weights(whole_run), weights(pretrain(job, pictures)))
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert f"{last} is damaged" in lines[0]
    assert f"going on from {older.name}" in lines[0]
    assert not (tmp_path / "executed").exists()


class _Evil:
    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_a_pickle_with_a_fitting_name_does_not_run_either(tmp_path, capsys):
    path = checkpoint.save(tmp_path, 3, {"model": _Evil(tmp_path / "executed")})
    assert checkpoint.newest(tmp_path) is None
    assert f"{path} is damaged" in capsys.readouterr().err
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("error", "raised"), [
        (OSError(errno.EIO, "Input/output error"), OSError), (OSError(errno.ESTALE, "Stale file handle"), OSError),
        (MemoryError(), MemoryError),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory"), MemoryError),
    ],
)
@pytest.mark.parametrize("place", ["hashlib.file_digest", "torch.load"])
def test_a_checkpoint_that_cannot_be_read_now_stays(error, raised, place, tmp_path, monkeypatch, capsys):
    def fails(*_, **__):
        raise error

    for step in (1, 2):
        checkpoint.save(tmp_path, step, {"step": step})
    with monkeypatch.context() as patch:
        patch.setattr(f"objectives.checkpoint.{place}", fails)
        with pytest.raises(raised) as seen:
            checkpoint.newest(tmp_path)
    assert "checkpoint-00000002" in str(seen.value)
    assert not capsys.readouterr().err
    assert len(checkpoint.found(tmp_path)) == 2
    assert checkpoint.newest(tmp_path) == {"step": 2}


def test_two_checkpoints_are_kept(tmp_path):
    for step in (100, 200, 300):
        checkpoint.save(tmp_path, step, {"step": step})
    assert [path.name[:19] for path in checkpoint.found(tmp_path)] == ["checkpoint-00000200", "checkpoint-00000300"]
    assert checkpoint.newest(tmp_path) == {"step": 300}
    assert not list(tmp_path.glob("*.tmp"))


def test_divergence_names_step_and_rate_and_keeps_the_batch(make_job, pictures, monkeypatch):
    from objectives.objective import Objective

    forward, batches = Objective.forward, []

    def poisoned(self, images, labels, index, mode="loss"):
        batches.append(index)
        losses = forward(self, images, labels, index, mode)
        return {"loss": losses["loss"] * (float("nan") if self.now[1] == 6 else 1)}

    monkeypatch.setattr(Objective, "forward", poisoned)
    job = make_job("mae", images_seen=640)
    with pytest.raises(ObjectiveError, match=r"loss is nan at step 7 of 40, learning rate [0-9.e-]+; lower") as error:
        pretrain(job, pictures)
    kept = load_file(job.folder / "diverged.safetensors")
    assert torch.equal(kept["index"], batches[6])
    assert torch.equal(kept["images"], pictures.images[batches[6]])
    assert str(job.folder / "diverged.safetensors") in str(error.value)
    assert "\n" not in str(error.value)


def one_step(job, pictures, limit, economical=False):
    """The gradients and the loss of a step where the student takes at most ``limit`` pictures at a time."""
    objective = build(job, pictures)
    prepare(objective, job, pictures)
    objective.economise(economical)
    student = objective.student.forward

    def forward(images, mask, **places):
        return _raise() if len(images) > limit else student(images, mask, **places)

    objective.student.forward = forward
    wrapper = _Wrapper(objective)
    objective.begin_step(0, 3)
    batch = {"images": pictures.images[:16], "labels": pictures.labels[:16], "index": torch.arange(16)}
    loss = objective.train_step(batch, wrapper)["loss"].item()
    assert wrapper.seen
    return wrapper.seen, loss


TOGETHER = {"moco_v3", "dino"}  # their losses compare the pictures of a batch


def exact(job):
    """The job without drop path, whose draws depend on how a batch is divided."""
    return replace(job, optimiser=replace(job.optimiser, drop_path=0.0))


@pytest.mark.parametrize("economical", [False, True])
@pytest.mark.parametrize("name", sorted(set(TRAINED) - TOGETHER))
def test_out_of_memory_halves_the_batch_and_the_gradient_stays(name, economical, make_job, pictures, capsys):
    job = exact(make_job(name))
    wanted, loss = one_step(job, pictures, limit=16)
    capsys.readouterr()
    got, again = one_step(job, pictures, 5, economical)
    assert "micro-batches of 4 of 16 pictures" in capsys.readouterr().err
    assert again == pytest.approx(loss, rel=1e-5)
    assert wanted.keys() == got.keys()
    for key, gradient in wanted.items():
        torch.testing.assert_close(got[key], gradient, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("name", sorted(TOGETHER))
def test_out_of_memory_is_refused_where_pictures_depend_on_each_other(name, make_job, pictures):
    with pytest.raises(ObjectiveError, match=r"lower suite\.batch_size"):
        one_step(exact(make_job(name)), pictures, limit=5)


def _raise():
    raise torch.OutOfMemoryError("simulated")


class _Wrapper:
    """An optimiser wrapper that keeps the gradients of its step."""

    def __init__(self, model):
        from mmengine.optim import OptimWrapper

        self.model, self.inner = model, OptimWrapper(torch.optim.SGD(model.parameters(), lr=0.0))
        self.optim_context, self.backward, self.zero_grad = (
            self.inner.optim_context, self.inner.backward, self.inner.zero_grad
        )
        self.seen = {}

    def step(self):
        self.seen = {k: p.grad.clone() for k, p in self.model.named_parameters() if p.grad is not None}
        self.inner.step()


def test_a_picture_that_alone_is_too_much_is_said_so(make_job, pictures, monkeypatch):
    monkeypatch.setattr("objectives.student.VisibleStudent.forward", lambda *_, **__: _raise())
    with pytest.raises(ObjectiveError, match="one picture at a time"):
        pretrain(make_job("mae"), pictures)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_is_an_os_error_with_the_files_name(make_job, pictures, monkeypatch, tmp_path):
    job = make_job("mae")
    monkeypatch.setattr("objectives.pretrain.CHECKPOINT_EVERY", 2)
    monkeypatch.setattr("objectives.pretrain.CHECKPOINT_SHARE", 1e9)
    real = open

    def full(path, *args, **kwargs):
        return real("/dev/full" if "checkpoint" in str(path) else path, *args, **kwargs)

    monkeypatch.setattr("builtins.open", full)
    with pytest.raises(OSError, match="No space left") as error:
        pretrain(job, pictures)
    assert error.value.errno == errno.ENOSPC
    assert "checkpoint-00000002" in error.value.filename
    assert not list(job.folder.glob("*.tmp"))


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")

    def write():
        with whole(path) as temporary:
            temporary.write_text("ne")
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space left") as error:
        write()
    assert error.value.filename == str(path)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
    assert path.read_text() == "old"


def test_checkpoints_take_their_share_of_the_time_at_most(make_job, pictures, monkeypatch):
    """Of ten that could be written, one; the others would come sooner than a hundred times what it took."""
    kept, save = [], checkpoint.save

    def slow(folder, step, state):
        time.sleep(1.0)
        kept.append(step)
        return save(folder, step, state)

    monkeypatch.setattr("objectives.pretrain.CHECKPOINT_EVERY", 1)
    monkeypatch.setattr("objectives.pretrain.CHECKPOINT_SHARE", 0.01)
    monkeypatch.setattr(checkpoint, "save", slow)
    pretrain(make_job("mae", images_seen=88, batch_size=8), pictures)
    assert kept == [1]
