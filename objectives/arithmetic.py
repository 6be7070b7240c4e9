"""How a training step computes: precision, the optimiser's kernel, compiled blocks. None of it changes what is learned
but by rounding; a backbone's description says what it was trained with.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from mmengine.optim import OptimWrapper
from timm.layers import DropPath
from torch import Tensor, nn

from objectives.machine import multiplies_bf16
from objectives.products import AttentionByProducts
from objectives.recipe import ObjectiveError, Optimiser

if TYPE_CHECKING:
    from objectives.objective import Objective

COMPILERS = ("g++", "clang++", "c++")
VARIANTS_OF_A_BLOCK = 64  # each width is a kernel of its own


@dataclass(frozen=True)
class Arithmetic:
    """What a training step is computed with.

    Attributes:
        precision: "fp32", or "bf16": autocast, with weights, optimiser, losses and normalisations in fp32.
        fused: AdamW as one kernel over all weights instead of a loop over them.
        compiled: the transformer blocks through ``torch.compile``, each kind once.
    """

    precision: str = "fp32"
    fused: bool = False
    compiled: bool = False

    @classmethod
    def of(cls, device: str | torch.device, fast: bool = False, compiled: bool = False) -> Arithmetic:
        """What pre-training takes on a device.

        On a CPU plain fp32, whose bits committed results have, and with ``fast`` whatever is quicker there: bf16 only
        where the processor multiplies it. On a GPU always bf16 and the fused optimiser.

        Raises:
            ObjectiveError: ``compiled`` without a C++ compiler on the machine.
        """
        if compiled and not any(map(shutil.which, COMPILERS)):  # a GPU's kernels need it as well
            raise ObjectiveError(f"--compile needs a C++ compiler ({', '.join(COMPILERS)}); install one, or do without")
        if torch.device(device).type == "cuda":
            return cls("bf16", True, compiled)
        return cls("bf16" if fast and multiplies_bf16() else "fp32", fast, compiled)


class AutocastOptimWrapper(OptimWrapper):
    """mmengine's, with the loss computed under bf16 autocast, on any device.

    Its own AmpOptimWrapper refuses to work on a CPU, and on a GPU scales the loss, which bf16 does not need: that costs
    a pass over all gradients, and hides a loss that is not finite.

    Args:
        by_products: on a CPU attention is computed by :mod:`objectives.products`, not by torch's fused kernel.
    """

    def __init__(self, *args: Any, by_products: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.by_products = by_products

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        device = next(model.parameters()).device.type
        attention = AttentionByProducts() if self.by_products and device == "cpu" else nullcontext()
        with super().optim_context(model), torch.autocast(device, dtype=torch.bfloat16), attention:
            yield


def optimiser_wrapper(
    groups: Sequence[Mapping[str, Any]], settings: Optimiser, lr: float, how: Arithmetic
) -> OptimWrapper:
    """AdamW over parameter groups, with the recipe's clipping, in mmengine's wrapper for the precision.

    Args:
        lr: at the peak of the schedule.
    """
    adamw = torch.optim.AdamW(groups, lr=lr, betas=settings.betas, eps=settings.eps, fused=how.fused or None)
    kind = partial(AutocastOptimWrapper, by_products=True) if how.precision == "bf16" else OptimWrapper
    wrapper = kind(adamw, clip_grad={"max_norm": settings.clip} if settings.clip else None)
    wrapper.clip_func = clip
    return wrapper


def clip(parameters: Sequence[nn.Parameter], max_norm: float) -> None:
    """torch's ``clip_grad_norm_``, without the norm: mmengine would keep it, as a number, for which it would wait for a
    GPU at every step.
    """
    nn.utils.clip_grad_norm_(parameters, max_norm)


def hasten(objective: Objective, how: Arithmetic, sharded: bool = False) -> Callable[[], None]:
    """Have an objective, on its device already, compute as quickly as ``how`` allows; returns what undoes it.

    In bf16 no token is computed that the loss does not look at (in fp32 committed results keep their bits), unless the
    blocks must be called as they are: compiled, or with their weights ``sharded`` over processes.
    """
    bf16 = how.precision == "bf16"
    if how.compiled:
        compile_blocks(objective)
    objective.economise(bf16 and not how.compiled and not sharded)

    def undo() -> None:  # what follows the training sees other shapes, and all tokens
        release_blocks(objective)
        objective.economise(False)

    return undo


def compile_blocks(model: nn.Module, backend: str = "inductor") -> int:
    """Let ``torch.compile`` make the kernels of every transformer block, in place; returns how many blocks there are.

    The weights keep their names. Blocks of a kind share their kernels, so that a deep network compiles no longer than
    a shallow one; shapes are static. So do blocks that differ in the rate of their drop path alone.

    Args:
        backend: of ``torch.compile``; "inductor" makes kernels, others only trace.
    """
    import torch._dynamo

    torch._dynamo.config.recompile_limit = max(VARIANTS_OF_A_BLOCK, torch._dynamo.config.recompile_limit)
    blocks = _blocks(model)
    for block in blocks:
        for name, part in block.named_children():
            if type(part) is DropPath:
                setattr(block, name, _DropPath(part).to(next(block.parameters()).device))
        block.compile(dynamic=False, backend=backend)
    return len(blocks)


def release_blocks(model: nn.Module) -> None:
    """Undo :func:`compile_blocks`: what follows the training sees other shapes, for which compiling does not pay."""
    for block in _blocks(model):
        block._compiled_call_impl = None
        for name, part in block.named_children():
            if isinstance(part, _DropPath):
                setattr(block, name, part.replaced[0].train(part.training))


class _DropPath(nn.Module):
    """timm's, with its rate in a tensor: a number would be part of the kernels, and each rate compiled for itself."""

    def __init__(self, replaced: DropPath) -> None:
        super().__init__()
        self.replaced = (replaced,)  # no child of it
        kept = 1.0 - replaced.drop_prob
        self.register_buffer("kept", torch.tensor(kept), persistent=False)
        scale = 1.0 / kept if replaced.scale_by_keep and kept else 1.0
        self.register_buffer("scale", torch.tensor(scale), persistent=False)
        self.train(replaced.training)

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        draws = torch.rand((len(x), *[1] * (x.ndim - 1)), dtype=torch.float32, device=x.device)
        return x * ((draws < self.kept) * self.scale).to(x.dtype)


def _blocks(model: nn.Module) -> list[nn.Module]:
    """Transformer blocks: of the parts called ``blocks`` those that have an ``mlp``."""
    return [block for part in model.modules() for block in getattr(part, "blocks", ()) if hasattr(block, "mlp")]
