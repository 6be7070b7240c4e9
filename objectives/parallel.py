"""Data parallel and sharded training of an objective: its wrappers for mmengine, and a state that is whole again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from mmengine.dist import broadcast, is_distributed
from mmengine.model import is_model_wrapper
from mmengine.optim import OptimWrapper
from mmengine.registry import MODEL_WRAPPERS
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.fsdp.wrap import ModuleWrapPolicy

from objectives.objective import Objective
from objectives.processes import share_drop_path
from objectives.recipe import ObjectiveError
from objectives.teacher import Teacher


@MODEL_WRAPPERS.register_module()
class DataParallelObjective(nn.Module):
    """The objective in one of several processes; its own ``train_step`` averages the gradients.

    torch's DistributedDataParallel sends gradients while they are computed: where the memory of one process runs out
    half-way, the others wait for ever. Here they are sent when every process says that it has them.
    """

    def __init__(self, module: Objective) -> None:
        super().__init__()
        self.module = module
        for parameter in module.parameters():  # the seed's; machines may differ in its last bits
            broadcast(parameter.data)

    def forward(self, *arguments: Any, **more: Any) -> Any:
        return self.module(*arguments, **more)

    def train_step(self, data: Any, optim_wrapper: OptimWrapper) -> dict[str, Tensor]:
        return self.module.train_step(data, optim_wrapper)


def wrap(
    objective: Objective, groups: Sequence[dict[str, Any]], sharded: bool
) -> tuple[nn.Module, list[dict[str, Any]]]:
    """The objective for the process group at hand, and its parameter groups; both as they were where there is none.

    Args:
        sharded: each process keeps a part of the weights and of what belongs to them (FSDP); else all of them.

    Raises:
        ObjectiveError: the teacher follows the student's weights, which no process has whole.
    """
    if not is_distributed():
        return objective, list(groups)
    share_drop_path(objective)
    if not sharded:
        return DataParallelObjective(objective), list(groups)
    if type(objective.teacher).update is not Teacher.update:
        raise ObjectiveError(
            f"objective.teacher.type={type(objective.teacher).__name__} averages the student's weights, which "
            "--sharded divides among the processes; leave --sharded out"
        )
    from mmengine.model import MMFullyShardedDataParallel

    place = {name: number for number, group in enumerate(groups) for name in _names(objective, group["params"])}
    blocks = {type(block) for part in objective.modules() for block in getattr(part, "blocks", ())}
    model = MMFullyShardedDataParallel(
        objective, auto_wrap_policy=ModuleWrapPolicy(blocks), ignored_modules=[objective.teacher],
        sharding_strategy="FULL_SHARD", device_id=next(objective.parameters()).device,
    )
    divided: list[dict[str, Any]] = [{**group, "params": []} for group in groups]
    for name, parameter in model.named_parameters():
        name = name.replace("_fsdp_wrapped_module.", "")
        if name in place:
            divided[place[name]]["params"].append(parameter)
    return model, divided


def _names(objective: Objective, parameters: Sequence[nn.Parameter]) -> list[str]:
    wanted = {id(parameter) for parameter in parameters}
    return [name for name, parameter in objective.named_parameters() if id(parameter) in wanted]


def _is_sharded(model: nn.Module) -> bool:
    return isinstance(model, FullyShardedDataParallel)


def _whole(model: nn.Module) -> StateDictOptions:
    """All weights, in the processor's memory: of a GPU in process 0 only, else torch (2.11) frees them too early."""
    return StateDictOptions(full_state_dict=True, cpu_offload=next(model.parameters()).is_cuda)


def clip_whole(model: nn.Module, optimiser: OptimWrapper) -> None:
    """Let the gradient's norm be that of all parts where the weights are divided."""
    if _is_sharded(model):

        def clip(parameters: list[nn.Parameter], max_norm: float) -> None:
            model.clip_grad_norm_(max_norm)

        optimiser.clip_func = clip


def state(model: nn.Module, optimiser: OptimWrapper) -> dict[str, Any]:
    """Weights and optimiser, whole, in process 0 at least; the same for one process and many, unless sharded."""
    if _is_sharded(model):
        return {"model": get_model_state_dict(model, options=_whole(model)), "sharded": True,
                "optimiser": get_optimizer_state_dict(model, optimiser.optimizer, options=_whole(model))}
    return {"model": _bare(model).state_dict(), "optimiser": optimiser.state_dict()}


def load_state(model: nn.Module, optimiser: OptimWrapper, saved: dict[str, Any]) -> None:
    """Set what :func:`state` gave.

    Raises:
        ObjectiveError: one of the two is sharded, the other is not.
    """
    if _is_sharded(model) != saved.get("sharded", False):
        raise ObjectiveError(
            "the checkpoint was written " + ("with" if saved.get("sharded") else "without") + " --sharded; go on "
            "likewise, or begin anew by --overwrite always"
        )
    if _is_sharded(model):
        set_model_state_dict(model, saved["model"], options=_whole(model))
        set_optimizer_state_dict(model, optimiser.optimizer, saved["optimiser"], options=_whole(model))
    else:
        _bare(model).load_state_dict(saved["model"])
        optimiser.load_state_dict(saved["optimiser"])


def gathered(model: nn.Module, objective: Objective, build: Callable[[], Objective]) -> Objective:
    """The trained objective with all of its weights in process 0: itself, or a new one where it is divided."""
    if not _is_sharded(model):
        return objective
    weights = get_model_state_dict(model, options=_whole(model))
    whole = build()
    if weights:
        whole.load_state_dict(weights)
    whole.teacher = objective.teacher
    return whole


def _bare(model: nn.Module) -> nn.Module:
    return model.module if is_model_wrapper(model) else model
