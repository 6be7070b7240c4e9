"""Mixed precision, as on a GPU, and a step that does not wait for the device; both seen on a processor."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from objectives import recipe as recipes
from objectives.arithmetic import Arithmetic
from objectives.corruption import BlockMask
from objectives.objective import Objective
from objectives.pretrain import build, pretrain

TRAINED = sorted(name for name, recipe in recipes.recipes().items() if recipe.trains)
WAITS = {"aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select"}  # for the device, where there is one


def step(objective, pictures, mode="loss"):
    objective.begin_step(0, 0)
    return objective(pictures.images[:8], pictures.labels[:8], torch.arange(8), mode)


@pytest.mark.parametrize("name", TRAINED)
def test_bfloat16_gives_the_loss_of_float32(name, make_job, pictures):
    objective = build(make_job(name, fixed_crop=False), pictures)
    objective.teacher.rehearse()
    wanted, loss = step(objective, pictures, "tensor"), step(objective, pictures)["loss"]
    with torch.autocast("cpu", torch.bfloat16):
        got, short = step(objective, pictures, "tensor"), step(objective, pictures)["loss"]
    short.backward()
    assert short.dtype == torch.float32
    assert short.item() == pytest.approx(loss.item(), rel=5e-3)
    assert got["prediction"].dtype == torch.bfloat16 or name == "supervised"  # the student did compute in it
    for part in ("clean", "corrupted"):
        assert torch.equal(got[part], wanted[part])
    assert got["target"].dtype == wanted["target"].dtype
    if type(objective.teacher).__module__ != "objectives.ema":  # which computes in the student's type
        assert torch.equal(got["target"], wanted["target"])


class Waits(TorchDispatchMode):
    """Counts the operations for which a processor waits until the device has come so far."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func._schema.name in WAITS:
            self.seen.append(func._schema.name)
        if func._schema.name.startswith("aten::index") and any(
            isinstance(index, torch.Tensor) and index.dtype == torch.bool
            for arg in args if isinstance(arg, list | tuple) for index in arg
        ):
            self.seen.append(f"{func._schema.name} by a mask")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", TRAINED)
def test_no_step_waits_for_the_device(name, precision, make_job, pictures, monkeypatch):
    """Forward, backward, clipping and hooks of steps at which nothing is logged; the optimiser is the machine's own."""
    forward, one, steps, waits = Objective.train_step, BlockMask._one, [], []

    def counted(self, data, optim_wrapper):
        with monkeypatch.context() as patch:
            patch.setattr(optim_wrapper.optimizer, "step", lambda **_: None)  # on a processor it reads its own count
            with Waits() as mode:
                result = forward(self, data, optim_wrapper)
        steps.append(result["loss"])
        waits.extend(mode.seen)
        return result

    def drawn(self, generator):  # on the processor, whatever the device
        with _disable_current_modes():
            return one(self, generator)

    monkeypatch.setattr(Objective, "train_step", counted)
    monkeypatch.setattr(BlockMask, "_one", drawn)
    monkeypatch.setattr("mmengine.logging.MessageHub.update_scalar", lambda *_, **__: waits.append("a number kept"))
    monkeypatch.setattr("objectives.pretrain.prepare", lambda objective, *_: objective.teacher.rehearse())
    pretrain(make_job(name, images_seen=48, fixed_crop=False, arithmetic=Arithmetic(precision)), pictures)
    assert len(steps) == 3
    assert not waits
