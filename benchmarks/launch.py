"""Processes that torchrun, srun or mpirun started: how they find each other, and how process 0 leads the others.

Process 0 plans, decides, prints and writes. The others do what it tells them, together with it, and say how that went.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext, redirect_stdout, suppress
from dataclasses import dataclass
from datetime import timedelta
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from benchmarks.errors import EXIT_INTERRUPTED, RequestError

if TYPE_CHECKING:
    from torch.distributed import TCPStore

T = TypeVar("T")

LAUNCHERS = ("none", "pytorch", "slurm", "mpi")
WAIT = timedelta(days=2)  # for another process, which may train a tokenizer or score a cell meanwhile
GRACE = timedelta(seconds=60)  # after a failure: whoever has not failed likewise by then waits for this process in vain
_VARIABLES = {  # rank, processes, rank on this machine
    "pytorch": ("RANK", "WORLD_SIZE", "LOCAL_RANK"),
    "slurm": ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID"),
    "mpi": ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"),
}
_ON_THIS_MACHINE = {"pytorch": "LOCAL_WORLD_SIZE", "mpi": "OMPI_COMM_WORLD_LOCAL_SIZE"}  # processes; may be missing
_STARTED_BY = {
    "pytorch": "torchrun --nproc-per-node N --no-python bench run …",
    "slurm": "srun --ntasks N bench run …", "mpi": "mpirun -n N bench run …",
}


@dataclass(frozen=True)
class Place:
    """Which of how many processes this is, in all and on its machine."""

    rank: int
    world: int
    local_rank: int
    local_world: int


def place(launcher: str, variables: Mapping[str, str]) -> Place:
    """From the variables that the launcher set.

    Raises:
        RequestError: they are not there: another program started the command.
    """
    found = [variables.get(name) for name in _VARIABLES[launcher]]
    if None in found:
        missing = _VARIABLES[launcher][found.index(None)]
        raise RequestError(f"--launcher {launcher}: {missing} is not set; start the command by {_STARTED_BY[launcher]}")
    rank, world, local_rank = (int(value) for value in found)
    if launcher == "slurm":
        return Place(rank, world, local_rank, _tasks_here(world, variables))
    local = variables.get(_ON_THIS_MACHINE[launcher], "")
    return Place(rank, world, local_rank, int(local) if local.isdigit() else world)


def _nodes(variables: Mapping[str, str]) -> int | None:
    """Machines of a Slurm step, or of its job; None where Slurm does not say."""
    found = variables.get("SLURM_STEP_NUM_NODES") or variables.get("SLURM_NNODES", "")
    return int(found) if found.isdigit() else None


def _tasks_here(world: int, variables: Mapping[str, str]) -> int:
    """Tasks of a Slurm step on this machine.

    Slurm counts them node by node as ``4(x2),3``; SLURM_NTASKS_PER_NODE is there only where --ntasks-per-node was
    given (man srun, output environment variables).
    """
    told = variables.get("SLURM_STEP_TASKS_PER_NODE") or variables.get("SLURM_TASKS_PER_NODE", "")
    counts = [int(count) for count, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", told) for _ in range(int(times or 1))]
    node = variables.get("SLURM_NODEID", "0")
    if node.isdigit() and int(node) < len(counts):
        return counts[int(node)]
    per_node = variables.get("SLURM_NTASKS_PER_NODE", "")
    return int(per_node) if per_node.isdigit() else -(-world // (_nodes(variables) or 1))


def _first_host(nodes: str) -> str:
    """``gpu[003-010,12],login`` -> ``gpu003``: the first machine of a Slurm node list."""
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])*", nodes)
    return re.sub(r"\[(\w+)[^\]]*\]", r"\1", first.group()) if first else ""


def _address(launcher: str, at: Place, variables: Mapping[str, str]) -> str:
    """The machine of process 0."""
    if "MASTER_ADDR" in variables:
        return variables["MASTER_ADDR"]
    if at.world == at.local_world or (launcher == "slurm" and _nodes(variables) == 1):
        return "127.0.0.1"
    if launcher == "slurm":
        names = ("SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST", "SLURM_NODELIST")
        if host := _first_host(next(filter(None, map(variables.get, names)), "")):
            return host
    raise RequestError(f"--launcher {launcher}: set MASTER_ADDR to the machine of process 0, the same for all")


class Team:
    """The processes of a launcher, joined.

    Raises:
        RequestError: the launcher's variables are missing, or there are fewer CUDA devices than processes.
    """

    def __init__(self, launcher: str, device: str) -> None:
        at = place(launcher, os.environ)
        self.rank, self.world, self.local_world = at.rank, at.world, at.local_world
        os.environ.update({
            "RANK": str(at.rank), "WORLD_SIZE": str(at.world), "LOCAL_RANK": str(at.local_rank),
            "MASTER_ADDR": _address(launcher, at, os.environ),
            "MASTER_PORT": os.environ.get("MASTER_PORT", "29500"),  # torch's own
        })
        index = _cuda(device, at, launcher)
        if index is not None:
            os.environ["LOCAL_RANK"] = str(index)  # which mmengine's and torch's functions take for the device's
        self._join(index is not None)
        self.pieces, self.heard = 0, True  # whether the others still listen
        self.store = self._store()

    def _join(self, cuda: bool) -> None:
        from mmengine.dist import init_dist
        from torch.distributed import init_process_group

        if cuda:
            init_dist("pytorch", backend="nccl", timeout=int(WAIT.total_seconds()))
        else:  # mmengine sets a CUDA device, which is not there
            init_process_group("gloo", timeout=WAIT)

    def _store(self) -> TCPStore:
        """Where processes leave notes, also while the group is stuck or gone."""
        from torch.distributed import TCPStore

        host = os.environ["MASTER_ADDR"]
        mine = None if self.rank else TCPStore(host, 0, is_master=True, wait_for_workers=False, timeout=WAIT)
        port = self._told(mine.port if mine else None)
        return mine or TCPStore(host, port, timeout=WAIT)

    def _told(self, value: T) -> T:
        from mmengine.dist import broadcast_object_list

        told = [value]
        broadcast_object_list(told)
        return told[0]

    def tell(self, what: Any) -> None:
        """Process 0: what the others hear."""
        self._told(what)

    def __enter__(self) -> Team:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # whoever is interrupted leaves without a word: so are the others, or they notice
        if self.heard and (kind is None or issubclass(kind, Exception)):
            self.tell(None)

    def hear(self) -> Any:
        """The others: what process 0 tells. Leaves where process 0 has gone."""
        try:
            return self._told(None)
        except RuntimeError:
            raise SystemExit(1) from None  # it has said why

    def together(self, work: Callable[[], T]) -> T:
        """A piece of work that every process does now; its result.

        Raises:
            RequestError: one process failed and others did not, so that they cannot go on together.
            Exception: what the work raised in this process, where it failed in all.
        """
        self.pieces += 1
        result, mine = None, None
        try:
            result = work()
        except Exception as error:
            mine = error
        words = " ".join(str(mine or "").split()) or (type(mine).__name__ if mine else "")
        self.store.set(self._key(self.rank), json.dumps(words))
        try:
            self.store.wait([self._key(rank) for rank in range(self.world)], GRACE if mine else WAIT)
            words_of_all = [json.loads(self.store.get(self._key(rank))) for rank in range(self.world)]
        except RuntimeError:
            self._give_up(self.rank, words, mine)
        if mine is not None and self.store.check(["given up"]):  # whose end this process noticed as an error of its own
            rank, words = json.loads(self.store.get("given up"))
            self._give_up(rank, words, mine)
        if mine is None and any(words_of_all):
            rank = next(rank for rank, words in enumerate(words_of_all) if words)
            self._give_up(rank, words_of_all[rank], mine)
        if mine is not None:
            raise mine
        return result  # type: ignore[return-value]

    def _give_up(self, rank: int, words: str, error: Exception | None) -> NoReturn:
        self.heard = False
        with suppress(RuntimeError):  # process 0, which keeps the notes, may be gone
            self.store.set("given up", json.dumps([rank, words]))
        raise RequestError(
            f"process {rank} of {self.world} failed and others did not: {words}; finished cells are kept"
        ) from error

    def _key(self, rank: int) -> str:
        return f"piece {self.pieces} process {rank}"

    def part(self) -> None:
        """Leave the process group: from now on each process works for itself; notes can still be left."""
        from torch.distributed import destroy_process_group

        self.heard = False
        destroy_process_group()

    def next(self) -> int:
        """A number from 0 on, each given once to one process."""
        return self.store.add("next", 1) - 1

    def note(self, what: str) -> None:
        """Leave a note that all processes can see."""
        self.store.set(what, "")

    def noted(self, what: str) -> bool:
        """Whether a process left this note."""
        return self.store.check([what])

    def finish(self) -> list[int]:
        """Say that this process has nothing more to do. Process 0 waits for all, a while; those that did not say so."""
        self.note(f"finished {self.rank}")
        until = time.monotonic() + GRACE.total_seconds()
        while missing := [rank for rank in range(self.world) if not self.noted(f"finished {rank}")]:
            if self.rank or time.monotonic() > until:
                break
            time.sleep(0.2)
        return missing


def _cuda(device: str, at: Place, launcher: str) -> int | None:
    """This process's CUDA device, one each; None where they use none."""
    import torch

    if device == "cpu" or (device == "auto" and not torch.cuda.is_available()):
        return None
    if device not in ("auto", "cuda"):
        raise RequestError(f"--device {device} with --launcher: each process takes a device of its own; write cuda")
    if not torch.cuda.is_available():
        raise RequestError("--device cuda: no CUDA device here; use --device cpu")
    seen = torch.cuda.device_count()
    if seen == 1 and launcher != "pytorch":  # srun --gpus-per-task 1 shows each task its own; NCCL refuses a shared one
        return 0
    if at.local_rank >= seen:
        raise RequestError(
            f"--launcher: {at.local_world} processes on this machine and {seen} CUDA devices; "
            "start one process a device"
        )
    return at.local_rank


def led(launcher: str, device: str) -> AbstractContextManager[Team | None]:
    """The team that this process leads; None where no launcher is named. Other processes than the first never return.

    Raises:
        RequestError: as :class:`Team`.
    """
    if launcher == "none":
        return nullcontext()
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # before torch is loaded: its advice is no news to a user
    team = Team(launcher, device)
    if team.rank:
        from benchmarks.jointly import follow

        with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):  # results are process 0's to print
            try:
                follow(team)
            except KeyboardInterrupt:  # process 0 says so
                raise SystemExit(EXIT_INTERRUPTED) from None
        raise SystemExit(0)
    return team


def check_alone(launcher: str, sharded: bool, jobs: int | None, executor: str, store: str) -> None:
    """Refuse options that make no sense together.

    Raises:
        RequestError: they do not.
    """
    if launcher == "none":
        if sharded:
            raise RequestError("--sharded divides weights among processes: name what started them by --launcher")
        return
    for option, given in (("--jobs", jobs is not None), ("--executor", executor != "local"), ("--store", store)):
        if given:
            raise RequestError(f"{option} with --launcher {launcher}: the processes are the launcher's; leave one out")
