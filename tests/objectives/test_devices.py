"""On a GPU all that meets lies there: seen on a processor, with a GPU that is not there.

Its tensors are torch's fake ones: shapes and types without numbers. Operations follow them, and one that is given
tensors of two devices, or wants to read a number, raises. Kernels, numbers and times are a real GPU's matter.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_iter

from objectives import recipe as recipes
from objectives.arithmetic import Arithmetic, hasten, optimiser_wrapper
from objectives.pretrain import build, parameter_groups

TRAINED = sorted(name for name, recipe in recipes.recipes().items() if recipe.trains)
BF16 = Arithmetic("bf16", fused=True)


def there(value):
    """Whether it is a tensor on the GPU, or names it."""
    if isinstance(value, Tensor):
        return value.is_cuda
    return str(value).startswith("cuda") if isinstance(value, str | torch.device) else False


def pretend_backward(loss):
    """Autograd's engine wants a driver; each weight that the loss hangs on gets a gradient of its shape."""
    seen, unseen = set(), [loss.grad_fn]
    while unseen:
        node = unseen.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        unseen += [following for following, _ in node.next_functions]
        if (weight := getattr(node, "variable", None)) is not None:
            weight.grad = torch.zeros_like(weight)


class PretendedGPU(TorchFunctionMode):
    """What is sent to ``cuda`` becomes a fake tensor, and so does all that is made of it; the rest stays what it is."""

    def __init__(self):
        super().__init__()
        self.fake = FakeTensorMode(allow_non_fake_inputs=True)

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is Tensor.pin_memory:
            return args[0]
        if not any(there(value) for value in tree_iter([args, kwargs])):
            return func(*args, **kwargs)
        if func is Tensor.backward:
            return pretend_backward(args[0])
        with self.fake:
            return func(*args, **kwargs)


@contextmanager
def pretended_gpu() -> Iterator[None]:
    """Within it the machine has such a GPU, with bfloat16."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "default_generators", (torch.Generator(),))
        patch.setattr("torch.cuda.amp.common.amp_definitely_not_available", lambda: False)
        patch.setattr("torch.cuda.is_bf16_supported", lambda *_, **__: True)
        with torch.backends.cudnn.flags(enabled=False), PretendedGPU():  # some of its kernels have no fake ones
            yield


@pytest.mark.parametrize("fixed", [False, True])
@pytest.mark.parametrize("name", TRAINED)
def test_a_step_stays_on_its_device(name, fixed, make_job, pictures):
    """Views, targets, forward, the optimiser's step and what follows it, twice."""
    job = make_job(name, fixed_crop=fixed)
    objective = build(job, pictures)
    objective.attach(steps=2)
    objective.teacher.rehearse()
    with pretended_gpu():
        objective.to("cuda")
        hasten(objective, BF16)
        groups = parameter_groups(objective, job.optimiser.weight_decay)
        optimiser = optimiser_wrapper(groups, job.optimiser, 1e-3, BF16)
        seen = []
        objective.student.register_forward_hook(lambda student, given, tokens: seen.append(tokens))
        for step in range(2):
            objective.begin_step(0, step)
            batch = {"images": pictures.images[:8], "labels": pictures.labels[:8], "index": torch.arange(8)}
            loss = objective.train_step(batch, optimiser)["loss"]
            objective.after_step(step + 1)
    assert loss.is_cuda
    assert loss.dtype == torch.float32
    assert seen
    assert all(tokens.is_cuda for tokens in seen)
    moments = [state["exp_avg"] for state in optimiser.optimizer.state.values()]
    assert moments
    assert all(moment.is_cuda for moment in moments)


def test_two_devices_do_not_mix_and_no_number_is_read():
    with pretended_gpu():
        ones = torch.ones(3).to("cuda")
        assert (ones + ones.new_ones(3)).is_cuda
        with pytest.raises(RuntimeError, match="two different devices"):
            ones + torch.ones(3)
        with pytest.raises(DataDependentOutputException):
            ones.sum().item()
