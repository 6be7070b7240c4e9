"""Records that describe a backbone: whose row they belong to, where they lie, how they are written.

They have the schema of task records, with ``details``, and another file name (``leaderboard.analyses``), so that
nothing that ranks ever reads them.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks import suite as suites
from benchmarks.environment import cores, environment
from benchmarks.errors import RequestError
from benchmarks.plan import digest
from leaderboard.details import problem
from leaderboard.records import (
    ANALYSIS,
    FILE_NAME,
    InvalidRecord,
    Metric,
    Record,
    RecordError,
    read_record,
    write_record,
)


@dataclass(frozen=True)
class Subject:
    """A backbone folder and the row of the table that it belongs to."""

    folder: Path
    about: dict[str, Any]  # backbone.json
    weights: str  # sha256
    suite: str
    objective: str
    variant: dict[str, Any]
    budget: str
    seed: int
    config: str | None  # fingerprint of the pre-training

    @property
    def label(self) -> str:
        """As a reader knows it: "mae seed0", "mae (long) seed1"."""
        options = [*(f"{k}={v}" for k, v in self.variant.items()), *([self.budget] if self.budget != "default" else [])]
        return self.objective + (f" ({', '.join(options)})" if options else "") + f" seed{self.seed}"

    def place(self, task: str, protocol: str) -> Path:
        """Folder of the record: beside the folders of the tasks, or within a backbone folder from elsewhere."""
        base = self.folder.parent if self.folder.name == "pretrain" else self.folder
        return base / f"{task}.{protocol}"


def subject(folder: Path) -> Subject:
    """Whose backbone this is, from the task records beside it, else from the folder's name.

    Raises:
        RequestError: no backbone, or its description cannot be read.
    """
    from benchmarks.execute import sha256
    from downstream.backbone import WeightsError, read_about

    folder = folder.resolve()
    try:
        about = read_about(folder)
        weights = sha256(folder)
    except (WeightsError, OSError) as error:
        raise RequestError(f"--backbone: {error}") from error
    own = folder.name == "pretrain"  # a run's; any other folder comes from elsewhere
    for path in sorted(folder.parent.glob(f"*/{FILE_NAME}")) if own else ():
        try:
            record = read_record(path)
        except InvalidRecord:
            continue
        if record.fingerprints["backbone"] == weights:
            return Subject(folder, about, weights, record.suite, record.objective, record.variant, record.budget,
                           record.seed, record.fingerprints["config"])
    row = folder.parent.parent.name if own else folder.name
    objective = str(about.get("objective") or row.split("@")[0])
    suite, seed = str(about.get("suite") or "none"), about.get("seed")
    if type(seed) is not int:
        number = folder.parent.name.removeprefix("seed") if own else ""
        seed = int(number) if number.isdecimal() else 0
    budget, variant = "default", {}
    if own and "@" in row:
        known = suites.suites()[suite].budgets if suite in suites.suites() else {}
        named = [name for name in known if row == f"{objective}@{digest({'budget': name})[:8]}"]
        budget, variant = (named[0], {}) if named else (budget, {"folder": row})
    return Subject(folder, about, weights, suite, objective, variant, budget, seed, about.get("fingerprint"))


def up_to_date(subject: Subject, task: str, protocol: str, fingerprint: str, overwrite: str) -> Record | None:
    """The record that is there, where the ``overwrite`` word lets it stand: "never" keeps an outdated one, too."""
    if overwrite == "always":
        return None
    try:
        record = read_record(subject.place(task, protocol) / ANALYSIS)
    except InvalidRecord:
        return None
    keep = record.status == "ok" and not problem(record)
    return record if keep and (overwrite == "never" or record.fingerprints["cell"] == fingerprint) else None


def write(
    subject: Subject, task: str, protocol: str, *, version: int, metrics: Mapping[str, Metric], details: dict[str, Any],
    config: dict[str, Any], fingerprint: str, data: str | None, device: str, started: float,
    train_images: int | None = None,
) -> Record:
    """Write the record to its place and return it as it can be read back.

    Raises:
        RequestError: a number that cannot be (not finite, out of its bounds), or a folder that cannot be written.
    """
    from benchmarks.execute import Threads, device_name, peak_memory

    finished = time.time()
    record = Record(
        suite=subject.suite, budget=subject.budget, objective=subject.objective, variant=subject.variant,
        backbone=subject.about["model"], task=task, task_version=version, protocol=protocol, seed=subject.seed,
        status="ok", reason=None, metrics=dict(metrics),
        cost={
            "pretrain_images": subject.about.get("images_seen"), "pretrain_seconds": subject.about.get("seconds"),
            "train_images": train_images, "seconds": round(finished - started, 2), "device": device_name(device),
            "flops": None, "peak_memory_bytes": peak_memory(),
        },
        environment={**environment(device), "threads": asdict(Threads(cores(), cores()))},
        fingerprints={"cell": fingerprint, "config": subject.config, "data": data, "backbone": subject.weights},
        config=config, started=_time(started), finished=_time(finished), details=rounded(details),
    )
    try:
        return read_record(write_record(subject.place(task, protocol), record, ANALYSIS))
    except (RecordError, InvalidRecord) as error:
        raise RequestError(f"{subject.label}: {error}") from error


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


def rounded(value: Any) -> Any:
    """Seven digits of every number: more than float32 sums hold, and files that a reader can compare."""
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(item) for item in value]
    return float(f"{value:.7g}") if isinstance(value, float) else value


def fetched(source: str, suite: str, runs: Path) -> Path:
    """The folder of a backbone named on the command line: a folder as it is, anything that ``bench eval`` takes too.

    The latter is installed as that command would, as the row of its name in ``runs``.

    Raises:
        RequestError: it cannot be read.
    """
    given = Path(source)
    for folder in (given, given / "pretrain"):
        if (folder / "backbone.json").is_file():
            return folder
    from benchmarks import evaluate
    from benchmarks.plan import Request

    wanted = evaluate.Wanted(source)
    converted = evaluate.fetch(wanted)
    cells = evaluate.plan(wanted, converted, Request((), ["all"], suite, seeds=(converted.about.get("seed", 0),)), runs)
    evaluate.install(converted, cells, runs)
    return runs / cells[0].pretraining.folder / "pretrain"


def find_backbones(runs: Path, suite: str, objectives: Sequence[str] = (), seed: int | None = None) -> list[Path]:
    """Folders with a ``backbone.json`` and weights below ``runs/<suite>``, in the order of their paths.

    Args:
        objectives: names of objectives, or of their folders (``mae@9982b404``); empty: all.

    Raises:
        RequestError: there are none.
    """
    folders = sorted(path.parent for path in (runs / suite).rglob("backbone.json"))
    folders = [folder for folder in folders if (folder / "backbone.safetensors").is_file()]
    if objectives:
        folders = [f for f in folders if any(p.split("@")[0] in objectives or p in objectives for p in f.parts)]
    if seed is not None:
        folders = [folder for folder in folders if f"seed{seed}" in folder.parts]
    if not folders:
        what = (f" of {', '.join(objectives)}" if objectives else "") + ("" if seed is None else f", seed {seed},")
        raise RequestError(f"no backbone{what} under {runs / suite}; first: bench run --suite {suite}, "
                           "or name folders by --backbone")
    return folders

