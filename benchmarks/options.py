"""Options that several commands share, each written once, and checks of what the user typed. Light (no torch).

A command takes them by their names here: ``suite: Suite = "embedded"``. Values of a fixed set are checked before the
command begins.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.errors import RequestError, unknown
from benchmarks.launch import LAUNCHERS

OVERWRITE = ("only-missing", "always", "never")
TABLE_FORMATS = ("terminal", "md", "csv", "json", "html", "tex")
TEXT_FORMATS = ("text", "json")
EXECUTORS = ("local", "ray", "slurm")

COMMITTED = Path(__file__).parent.parent / "leaderboard" / "records"  # the records behind the published table


def choice(option: str, known: Sequence[str]) -> Callable[[str], str]:
    """A check for typer's ``callback``: the value as it is, or a RequestError with all known ones.

    Args:
        known: what the option takes; with "" it may be left out.
    """

    def check(value: str) -> str:
        if value not in known:
            raise RequestError(f"{option} {value!r}: one of {', '.join(filter(None, known))}")
        return value

    return check


def check_executor(value: str) -> str:
    """``local``, ``ray[:ADDRESS]`` or ``slurm[:PARAMETERS]``; what follows the colon is looked at later."""
    if value == "local" or value.partition(":")[0] in EXECUTORS[1:]:
        return value
    raise unknown("value of --executor", value, EXECUTORS)


Objectives = Annotated[str, typer.Option("--objective", help="Objectives, separated by commas, or `all`.")]
Tasks = Annotated[str, typer.Option(help="Tasks, separated by commas, or `all`.")]
Suite = Annotated[str, typer.Option(help="Suite; see `bench list suites`.")]
Protocol = Annotated[
    str, typer.Option(help="frozen, knn, attentive, finetune, separated by commas, or `all`; default: the suite's.")
]
Budget = Annotated[
    str,
    typer.Option(help="Pre-training budget (images seen): default, long, … (paper: 100ep, 800ep, …); `bench list "
                 "suites` names them."),
]
Seeds = Annotated[int | None, typer.Option(help="Run seeds 0 … N-1; default: seed 0.")]
Seed = Annotated[int | None, typer.Option(help="Run this seed alone.")]
Runs = Annotated[Path, typer.Option(help="Folder of backbones and records.")]
DataRoot = Annotated[
    Path | None,
    typer.Option(help="Folder of the suite's data; needed for mini and paper (embedded: <runs>/cache/scenes, rendered "
                 "when missing)."),
]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda[:N].")]
Jobs = Annotated[
    int | None,
    typer.Option(min=1, help="Backbones and cells computed side by side, in processes that share the cores; default: "
                 "on a CPU one a core, on a GPU one, or on suites of small backbones as many as fit."),
]
Launcher = Annotated[
    str,
    typer.Option(help="What started this command's processes: none, pytorch (torchrun), slurm (srun) or mpi (mpirun). "
                 "They pre-train together and, but for tracking, fine-tune together.",
                 callback=choice("--launcher", LAUNCHERS)),
]
Executor = Annotated[
    str,
    typer.Option(help="Where backbones and cells are computed: local (this machine, see --jobs), ray[:ADDRESS] "
                 "(without an address: a cluster of this machine), slurm[:partition=…,time=MINUTES,cores=…,mem=GB,"
                 "gpus=…,…]. The other two need a --runs folder that all machines share, or (bench run, bench sweep) "
                 "--store.",
                 callback=check_executor),
]
Store = Annotated[
    str,
    typer.Option(help="URL of a copy of the runs folder (s3://bucket/runs, file:///…, what fsspec opens), for machines "
                 "that share no folder: backbones and records are fetched from there and sent there."),
]
Sharded = Annotated[
    bool, typer.Option("--sharded", help="With --launcher: in pre-training, each process keeps a part of the weights.")
]
Fast = Annotated[
    bool,
    typer.Option("--fast", help="Pre-train on a CPU with the fused optimiser, and in bf16 where the processor "
                 "multiplies it: not bit-identical to committed results (a GPU does both anyway)."),
]
Compile = Annotated[
    bool,
    typer.Option("--compile", help="Pre-train with transformer blocks compiled by torch.compile; kernels are cached."),
]
CfgOptions = Annotated[
    list[str] | None,
    typer.Option(help="key=value; repeat the option for each. Keys: objective.SLOT.KEY (corruption, student, teacher, "
                 "normalisation, head, loss), optimiser.KEY, crop.KEY, suite.KEY (model, kwargs.KEY, input_size, "
                 "batch_size, images_seen, …), task.TASK.KEY. For example objective.loss.type=L1, optimiser.lr=1e-3, "
                 "suite.kwargs.depth=4, task.pose.epochs=5."),
]
Overwrite = Annotated[
    str,
    typer.Option(help="only-missing: what has no valid record of these settings; always: everything again; never: keep "
                 "any record, a failed or an outdated one too.", callback=choice("--overwrite", OVERWRITE)),
]
DryRun = Annotated[
    bool,
    typer.Option("--dry-run", help="Show the backbones and cells that would be computed, and stop; slot arguments "
                 "and task settings are not checked."),
]
TableFormat = Annotated[
    str,
    typer.Option("--format", help="terminal, md, csv, json, html or tex.", callback=choice("--format", TABLE_FORMATS)),
]
TextFormat = Annotated[
    str, typer.Option("--format", help="text or json.", callback=choice("--format", TEXT_FORMATS))
]


def names(text: str) -> list[str]:
    """``"a, b"`` -> ``["a", "b"]``.

    Raises:
        RequestError: names are separated by something else.
    """
    found = [name.strip() for name in text.split(",") if name.strip()]
    for name in found:
        if len(name.split()) > 1:
            raise RequestError(f"{name!r}: separate names by commas: {','.join(name.split())}")
    return found


def chosen_seeds(seeds: int | None, seed: int | None) -> tuple[int, ...]:
    """The seeds that ``--seeds N`` or ``--seed K`` asks for; seed 0 where neither is given.

    Raises:
        RequestError: both are given, or one is out of range.
    """
    if seeds is not None and seed is not None:
        raise RequestError("--seeds N means seeds 0 to N-1, --seed K just that one: give one of them")
    if seeds is not None and seeds < 1:
        raise RequestError(f"--seeds {seeds}: at least 1")
    if seed is not None and seed < 0:
        raise RequestError(f"--seed {seed}: a whole number from 0 on")
    return tuple(range(seeds)) if seeds is not None else (seed or 0,)


def check_writable(runs: Path) -> None:
    """Fail before any work where the runs folder cannot be written.

    Raises:
        RequestError: it cannot, or it is no folder but a store's URL.
    """
    if re.match(r"[a-z][a-z0-9+.-]+:/", str(runs)):
        raise RequestError(
            f"--runs {runs}: locks and checkpoints need a folder that every machine mounts, not a store's URL; "
            "mount it, or name it by --store"
        )
    probe = runs / f".write-test.{os.getpid()}"
    try:
        runs.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"x" * 4096)
        probe.unlink()
    except OSError as error:
        raise RequestError(f"--runs {runs}: cannot write there ({error.strerror}); name another folder") from error
