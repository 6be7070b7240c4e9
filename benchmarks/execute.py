"""Execution: train what is missing, score it, write one record a cell; a failure costs its own cells only."""

from __future__ import annotations

import errno
import json
import re
import secrets
import time
import traceback
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import data as data_module
from benchmarks.data import DataError, MissingPictures
from benchmarks.environment import cores, environment, keep_kernels
from benchmarks.errors import RequestError
from benchmarks.locks import Busy, held
from benchmarks.notes import noting
from benchmarks.plan import Cell, Pretraining
from benchmarks.progress import Reporter
from benchmarks.tidy import close_runs
from leaderboard.records import WARNINGS, InvalidRecord, Record, RecordError, checked, read_record, write_record
from objectives.files import sha256_of
from objectives.machine import give_back_memory, keep_freed_memory

if TYPE_CHECKING:
    from downstream.task import Job, Outcome
    from objectives.objective import Objective
    from objectives.pictures.source import Source
    from objectives.pretrain import PretrainJob


MARK = "fingerprint"  # file beside checkpoints, see _marked
HOPELESS = frozenset({
    errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.ENODEV, errno.EHOSTDOWN,
})


class PretrainingFailed(RuntimeError):
    """A backbone could not be trained; the message is the reason that its cells get."""


@dataclass(frozen=True)
class Threads:
    """Cores that a pre-training and a cell may use; part of the record: sums in another order are other bits."""

    pretraining: int
    task: int

    @classmethod
    def of(cls, record: Record) -> Threads:
        """What a record was computed with, as far as this machine has as many cores."""
        alike = record.environment["hardware"].get("cores")
        then = record.environment.get("threads")
        if not isinstance(then, dict):  # before there were such, or a stranger's
            then = {"pretraining": alike, "task": alike}
        found = {name: then.get(name) for name in ("pretraining", "task")}
        return cls(**{name: min(cores(), n) if isinstance(n, int) and n > 0 else cores() for name, n in found.items()})


@dataclass(frozen=True)
class Work:
    """A piece of work: a backbone to train, or a cell to score on one."""

    method: str  # pretrain or score
    arguments: tuple[Any, ...]
    threads: int
    cells: tuple[Cell, ...]  # that have no number when it fails
    name: str
    wait: bool = False  # for another process that is at work on it

    @property
    def place(self) -> Path:
        """The folder that it fills, relative to the runs folder."""
        return self.arguments[0].folder / "pretrain" if self.method == "pretrain" else self.arguments[0].folder


@dataclass
class Execution:
    """One call of ``bench run``: where things lie, and what has been looked up so far."""

    runs: Path
    root: Path
    device: str = "auto"
    overwrite: str = "only-missing"
    reporter: Reporter = field(default_factory=Reporter)
    threads: Threads = field(default_factory=lambda: Threads(cores(), cores()))
    processes: int = 1  # that train a backbone or fine-tune on a task together
    sharded: bool = False  # each of them keeps a part of the weights
    store: str = ""  # URL of a copy of the runs folder, see benchmarks.store
    request: str = field(default_factory=lambda: secrets.token_hex(8))  # this call of the command, in all its workers
    fast: bool = False  # pre-training may round otherwise than committed results; see objectives.arithmetic
    compiled: bool = False  # its blocks go through torch.compile
    workers: int = 1  # that do pieces of work side by side
    _pictures: dict[str, Source] = field(default_factory=dict)
    _fingerprints: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        keep_kernels(data_module.cache_folder(self.runs))

    # --- what is there already ----------------------------------------------------------------------------------------

    def pictures_fingerprint(self, pretraining: Pretraining) -> str:
        suite = pretraining.suite
        return self._fingerprint("pictures", data_module.absolute(suite.pictures, self.root))

    def task_fingerprint(self, cell: Cell) -> str:
        return self._fingerprint(cell.task.name, data_module.section(cell.pretraining.suite, cell.task.name, self.root))

    def _fingerprint(self, name: str, section: dict[str, Any]) -> str:
        if name not in self._fingerprints:
            self._fingerprints[name] = data_module.fingerprint(section)
        return self._fingerprints[name]

    def backbone(self, pretraining: Pretraining) -> Path | None:
        """The folder of a finished backbone with these settings, seed and data; None where it has to be trained."""
        folder = self.runs / pretraining.folder / "pretrain"
        try:
            about = json.loads((folder / "backbone.json").read_text())
        except (OSError, ValueError):
            return None
        wanted = pretraining.fingerprint(self.pictures_fingerprint(pretraining))
        return folder if about.get("fingerprint") == wanted and (folder / "backbone.safetensors").is_file() else None

    def finished(self, cell: Cell) -> Record | None:
        """The cell's record where it is valid, ok and of the same fingerprint."""
        folder = self.backbone(cell.pretraining)
        path = self.runs / cell.folder / "result.json"
        if folder is None or not path.is_file():
            return None
        try:
            record = read_record(path)
        except InvalidRecord:
            return None
        same = record.fingerprints.get("cell") == cell.fingerprint(sha256(folder), self.task_fingerprint(cell))
        return record if same and record.status == "ok" else None

    def kept(self, cell: Cell) -> Record:
        """The record in the cell's folder, as another process has just written it."""
        return read_record(self.runs / cell.folder / "result.json")

    def split(self, cells: Sequence[Cell]) -> tuple[list[Cell], list[Cell]]:
        """(to run, finished) under the ``overwrite`` word."""
        if self.overwrite == "always":
            return list(cells), []
        missing, finished = [], []
        for cell in cells:
            if self.overwrite == "never":  # whatever has a record keeps it, even a failed or outdated one
                done = (self.runs / cell.folder / "result.json").is_file()
            else:
                done = self.finished(cell) is not None
            (finished if done else missing).append(cell)
        return missing, finished

    # --- work ---------------------------------------------------------------------------------------------------------

    def check(self, cells: Sequence[Cell]) -> None:
        """Build every objective that has to be trained, so that a request that makes no sense is refused at once.

        Raises:
            RequestError: slots that do not fit each other or the backbone, a teacher without weights, or a setting
                that a task does not know or take.
            ObjectiveError: blocks are to be compiled and there is no compiler.
        """
        import torch

        from objectives.arithmetic import Arithmetic
        from objectives.recipe import ObjectiveError

        Arithmetic.of("cpu", self.fast, self.compiled)
        _check_settings(cells)
        seen = {cell.pretraining.label: cell.pretraining for cell in cells}
        for pretraining in seen.values():
            if self.backbone(pretraining) is not None:
                continue
            suite = pretraining.suite
            try:
                objective = rehearsed(pretraining, num_classes=2)
                if pretraining.recipe.trains:  # some misfits only show at work: try two grey pictures
                    grey = torch.full((2, 3, suite.input_size, suite.input_size), 127, dtype=torch.uint8)
                    objective.begin_step(0, 0)
                    objective(grey, torch.tensor([0, 1]), torch.tensor([0, 1]))
            except ObjectiveError as error:
                raise RequestError(f"{pretraining.recipe.name}: {error}") from error
            except Exception as error:  # timm, safetensors and torch raise many kinds; each means: not with these parts
                reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
                parts = ", ".join(f"{key}={value}" for key, value in pretraining.variant.items()) or "its recipe"
                raise RequestError(f"{pretraining.recipe.name}: cannot be built from {parts} ({reason})") from error

    def run(self, cells: Sequence[Cell]) -> list[Record]:
        """Run the cells and return their records, in order (failed and skipped ones too).

        What another process is at work on comes last; by then it is finished, or the other process is dead and it is
        taken over.
        """
        waiting, records = self.queue(cells), {}
        while waiting:
            piece = waiting.popleft()
            self.settle(piece, self.attempt(piece), waiting, records)
        return [records[cell.folder] for cell in cells]

    def queue(self, cells: Sequence[Cell]) -> deque[Work]:
        """The backbones of the cells, which have to be there first."""
        backbones: dict[Path, list[Cell]] = {}
        for cell in cells:
            backbones.setdefault(cell.pretraining.folder, []).append(cell)
        return deque(
            Work("pretrain", (own[0].pretraining,), self.threads.pretraining, tuple(own), _name(own[0].pretraining))
            for own in backbones.values()
        )

    def attempt(self, piece: Work) -> Any:
        """The folder of a backbone, the record of a cell, or the exception that came instead."""
        set_threads(piece.threads)
        forget_peak_memory()
        try:
            self._make_ready(piece)
            result = {"pretrain": self.pretrain, "score": self.score}[piece.method](*piece.arguments, wait=piece.wait)
            self._send(piece.place)
            return result
        except Exception as error:
            return error
        finally:
            close_runs()

    def _make_ready(self, piece: Work) -> None:
        """Where machines share nothing but a store: have here what the piece needs."""
        if not self.store:
            return
        from benchmarks.store import fetch

        pretraining = piece.cells[0].pretraining
        fetch(self.store, self.runs, {pretraining.folder / "pretrain", piece.place})
        if pretraining.suite.rendered:
            data_module.data_root(pretraining.suite, self.root, self.runs, self.reporter.report)

    def _send(self, folder: Path) -> None:
        if self.store:
            from benchmarks.store import send

            send(self.store, self.runs, folder)

    def settle(self, piece: Work, result: Any, waiting: deque[Work], records: dict[Path, Record]) -> None:
        """Note what came of a piece of work, and what has to be done next.

        Raises:
            RequestError: the run cannot go on, because the disk is full or gone.
        """
        if isinstance(result, RequestError):
            raise result
        if isinstance(result, Busy):
            waiting.append(replace(piece, wait=True))
        elif isinstance(result, Exception):
            self._raise_if_hopeless(result)
            status = "skipped" if isinstance(result, MissingPictures) else "failed"
            try:
                device = resolve_device(self.device)
            except RequestError:  # the machines that do the work have it, this one does not
                device = "cpu"
            for cell in piece.cells:
                records[cell.folder] = self._record(cell, status, str(result), None, device, time.time())
                self._send(cell.folder)
        elif piece.method == "score":
            records[piece.cells[0].folder] = result
            if self.store:
                from benchmarks.store import fetch

                fetch(self.store, self.runs, [piece.place])
        else:  # the last task first, tracking takes longest
            found = [Work("score", (cell, result), self.threads.task, (cell,), cell.name) for cell in piece.cells]
            if 0 < sum(other.method == "pretrain" for other in waiting) < self.workers:
                waiting.extend(reversed(found))  # the last backbones go first: nobody shall wait for them in the end
            else:
                waiting.extendleft(found)  # what is trained is scored before the next backbone

    @contextmanager
    def _turn(self, work: Path, name: str, wait: bool) -> Iterator[None]:
        """Hold the lock on a folder of the runs; raises Busy where another process holds it, unless told to wait."""
        with ExitStack() as stack:
            try:
                stack.enter_context(held(self.runs, work, wait=False))
            except Busy:
                if not wait:
                    self.reporter.say(f"{name}: another process is at work on it; going on with the rest")
                    raise
                self.reporter.say(f"{name}: waiting for the process that is at work on it")
                stack.enter_context(held(self.runs, work, wait=True))
            yield

    def pretrain(self, pretraining: Pretraining, wait: bool = False) -> Path:
        """The folder of a backbone, trained where it is not there yet.

        Raises:
            Busy: another process is training it.
            PretrainingFailed: with the reason in one line.
            MissingPictures: there is nothing to train on.
            RequestError: the disk is full or gone.
        """
        with self._turn(pretraining.folder / "pretrain", _name(pretraining), wait):
            folder = self.backbone(pretraining)
            if folder is not None:
                mine = _marked(folder)[1] == self.request  # trained by a worker that was lost before it said so
                if wait or self.overwrite != "always" or pretraining.fetched or mine:
                    return folder
            try:
                return self._train(pretraining)
            except MissingPictures:
                raise
            except Exception as error:
                self._raise_if_hopeless(error)
                reason = self._reason(error, self.runs / pretraining.folder / "pretrain")
                raise PretrainingFailed(f"pre-training failed: {reason}") from error

    def _train(self, pretraining: Pretraining) -> Path:
        started = time.time()
        name = _name(pretraining)
        self.reporter.begin(name)
        folder = self.runs / pretraining.folder / "pretrain"
        self.pictures(pretraining)  # before anything is touched
        self._clear_stale(folder, pretraining)
        self.make_backbone(pretraining, folder)
        section = data_module.absolute(pretraining.suite.pictures, self.root)
        if changed := self._changed("pictures", section):
            (folder / "backbone.json").unlink()
            raise DataError(changed)
        self.reporter.say(f"trained {name} in {time.time() - started:.0f} s")
        about = _about(folder)
        for key, what in WARNINGS.items():
            if about.get(key):
                self.reporter.say(f"warning: {name}: {what}: {about[key]}")
        return folder

    def make_backbone(self, pretraining: Pretraining, folder: Path) -> None:
        """Train it, or go on from the last checkpoint."""
        from objectives.pretrain import pretrain

        job = self.pretrain_job(pretraining, folder, resolve_device(self.device))
        pretrain(job, self.pictures(pretraining))

    def _clear_stale(self, folder: Path, pretraining: Pretraining) -> None:
        """A checkpoint is resumed only by the settings, the arithmetic and the kind of device that wrote it."""
        wanted = pretraining.fingerprint(self.pictures_fingerprint(pretraining))
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "backbone.json").unlink(missing_ok=True)
        for left in folder.glob(".*.tmp"):  # of a process that was killed while it wrote; the lock is ours
            left.unlink()
        of, request, computed = _marked(folder)
        how = self._computing()
        # a second attempt of the same request, after a worker was lost, goes on from the first one's checkpoints
        if of != wanted or computed != how or (self.overwrite == "always" and request != self.request):
            for old in folder.glob("checkpoint-*"):
                old.unlink()
            (folder / MARK).write_text(f"{wanted} {self.request} {how}")

    def _computing(self) -> str:
        """The kind of device and the arithmetic of a pre-training, in one word."""
        from objectives.arithmetic import Arithmetic

        device = resolve_device(self.device)
        return _word(device, asdict(Arithmetic.of(device, self.fast, self.compiled)))

    def pictures(self, pretraining: Pretraining) -> Source:
        """The pre-training pictures, loaded once per size."""
        key = f"{pretraining.suite.name} {pretraining.suite.input_size}"
        if key not in self._pictures:
            self._pictures[key] = data_module.load_pictures(
                pretraining.suite, self.root, self.reporter.report, data_module.cache_folder(self.runs)
            )
        return self._pictures[key]

    def pretrain_job(self, pretraining: Pretraining, folder: Path, device: str) -> PretrainJob:
        from objectives.arithmetic import Arithmetic
        from objectives.pretrain import PretrainJob

        suite = pretraining.suite
        return PretrainJob(
            objective=pretraining.recipe.name, slots=pretraining.slots, optimiser=pretraining.optimiser,
            crop=pretraining.crop, trains=pretraining.recipe.trains, model=suite.model, kwargs=suite.kwargs,
            input_size=suite.input_size, images_seen=pretraining.images_seen, batch_size=suite.batch_size,
            fixed_crop=suite.fixed_crop, decoder=suite.decoder, suite=suite.name, seed=pretraining.seed,
            device=device, folder=folder, cache=data_module.cache_folder(self.runs),
            about={"fingerprint": pretraining.fingerprint(self.pictures_fingerprint(pretraining)),
                   "config": pretraining.config(),
                   "environment": {**environment(device), "processes": self.processes, "sharded": self.sharded}},
            progress=noting(self.runs, pretraining.folder / "pretrain", self.reporter.report), sharded=self.sharded,
            arithmetic=Arithmetic.of(device, self.fast, self.compiled),
        )

    def score(self, cell: Cell, backbone: Path, wait: bool = False) -> Record:
        """The cell's number, kept as its record; a failure is a record, too.

        Raises:
            Busy: another process is at work on it.
            RequestError: the disk is full or gone.
        """
        with self._turn(cell.folder, cell.name, wait):
            known = self.finished(cell) if wait or self.overwrite != "always" else None
            if known is None:
                return self._score(cell, backbone)
            self.reporter.say(f"{cell.name}: finished by another process")
            return known

    def _score(self, cell: Cell, backbone: Path) -> Record:
        from downstream.task import Job, MissingData

        device = resolve_device(self.device)
        self.reporter.begin(cell.name)
        folder = self.runs / cell.folder
        folder.mkdir(parents=True, exist_ok=True)
        for left in folder.glob(".*.tmp"):
            left.unlink()
        started = time.time()
        weights = sha256(backbone)  # before the work, as of the data, to be compared with those after it
        self.task_fingerprint(cell)
        section = data_module.section(cell.pretraining.suite, cell.task.name, self.root)
        job = Job(
            backbone=backbone, task=cell.task.name, protocol=cell.protocol, data=section, settings=cell.settings,
            seed=cell.pretraining.seed, device=device, work_dir=folder,
            progress=noting(self.runs, cell.folder, self.reporter.report),
        )
        try:
            outcome = self.evaluate(job)
        except MissingData as error:
            return self._record(cell, "skipped", str(error), None, device, started)
        except Exception as error:
            self._raise_if_hopeless(error)
            return self._record(cell, "failed", self._reason(error, folder), None, device, started)
        changed = self._changed(cell.task.name, section)
        if sha256(backbone) != weights:
            changed = f"{backbone} was trained anew while it was scored; run the command again"
        if changed:
            return self._record(cell, "failed", changed, None, device, started)
        return self._record(cell, "ok", None, outcome, device, started, backbone)

    def evaluate(self, job: Job) -> Outcome:
        """The cell's number."""
        from downstream.task import evaluate

        return evaluate(job)

    def _changed(self, name: str, section: dict[str, Any]) -> str | None:
        """Why a result does not stand: the data are not those that the cell was planned with."""
        if data_module.fingerprint(section) == self._fingerprint(name, section):
            return None
        del self._fingerprints[name]
        return f"the data in {section['root']} changed while they were used; leave them alone and run the command again"

    def _raise_if_hopeless(self, error: Exception) -> None:
        """A disk that is full or gone would fail every other cell as well: the run ends, what is finished stays."""
        if isinstance(error, RequestError):
            raise error
        if isinstance(error, OSError) and error.errno in HOPELESS:
            where = error.filename or self.runs
            raise RequestError(
                f"{where}: {(error.strerror or str(error)).lower()}; finished cells are kept: free some space or mend "
                "the disk, then the same command goes on"
            ) from error

    def _reason(self, error: Exception, folder: Path) -> str:
        """One line for the record; the traceback of an unforeseen error goes to a file beside it."""
        import torch

        from downstream.task import TaskError
        from objectives.recipe import ObjectiveError

        if isinstance(error, (TaskError, ObjectiveError, DataError)):
            return str(error)
        first = str(error).splitlines()[0] if str(error) else ""
        if "DataLoader worker" in first:
            return f"a process that reads data was killed ({first[:200]}); lower the task's num_workers or batch_size"
        if isinstance(error, torch.OutOfMemoryError):
            return f"out of memory ({first[:200]}); lower the task's batch_size"
        if isinstance(error, OSError) and error.filename:
            first = f"{error.strerror}: {error.filename}"
        folder.mkdir(parents=True, exist_ok=True)
        trace = folder / "traceback.txt"
        with suppress(OSError):
            trace.write_text(traceback.format_exc())
        return f"{type(error).__name__}: {first[:300]} (traceback in {trace})"

    def _record(
        self, cell: Cell, status: str, reason: str | None, outcome: Outcome | None, device: str, started: float,
        backbone: Path | None = None,
    ) -> Record:
        pretraining = cell.pretraining
        about = _about(backbone) if backbone else {}
        weights = sha256(backbone) if backbone else None
        data = self.task_fingerprint(cell)
        metrics = {}
        if outcome is not None:
            for i, metric in enumerate(cell.task.metrics):
                metrics[metric.name] = {
                    "value": float(outcome.metrics[metric.name]), "higher_is_better": metric.higher_is_better,
                    "unit": metric.unit, "main": i == 0, "low": metric.low, "high": metric.high,
                }
        seconds = time.time() - started
        record = Record(
            suite=pretraining.suite.name, budget=pretraining.budget, objective=pretraining.recipe.name,
            variant=pretraining.variant, backbone=pretraining.suite.model, task=cell.task.name,
            task_version=cell.task.version, protocol=cell.protocol, seed=pretraining.seed, status=status,
            reason=reason, metrics=metrics,
            cost={
                "pretrain_images": about.get("images_seen", pretraining.images_seen),
                "pretrain_seconds": _pretrain_seconds(about), "train_images": outcome.train_images if outcome else None,
                "seconds": round(seconds, 2), "device": device_name(device), "flops": None,
                "peak_memory_bytes": peak_memory(device),
            },
            environment={**environment(device), "threads": asdict(self.threads), "processes": {
                "pretraining": about.get("environment", {}).get("processes", 1), "task": self.processes,
            }, "arithmetic": about.get("arithmetic")},
            fingerprints={
                "cell": cell.fingerprint(weights or "none", data),
                "config": pretraining.fingerprint(self.pictures_fingerprint(pretraining)), "data": data,
                "backbone": weights,
            },
            config=cell.config(), started=_time(started), finished=_time(time.time()),
            items=outcome.items if outcome and outcome.items else None,
            chosen=outcome.chosen if outcome and outcome.chosen else None,
            details=_details(about, outcome),
        )
        if outcome is not None:
            try:
                record = checked(record)
            except RecordError as error:  # a number that cannot be: not finite, or out of its bounds
                return self._record(cell, "failed", str(error), None, device, started, backbone)
        write_record(self.runs / cell.folder, record)
        main = record.main_metric
        tail = f"{main[0]} {main[1]['value']:.2f}{main[1]['unit']}" if main else f"{status}: {reason}"
        self.reporter.say(f"{cell.name}: {tail} ({seconds:.0f} s)")
        return record


def rehearsed(pretraining: Pretraining, num_classes: int, steps: int = 1) -> Objective:
    """An objective to be tried out: built, attached to a training of ``steps`` steps, on the CPU.

    Nothing is trained and no picture is read: a tokenizer gives ids of the right shape and no meaning. Initial weights
    come from torch's global generator.

    Args:
        num_classes: how many classes the labels have, at least 2 for supervised training.

    Raises:
        ObjectiveError: slots that do not fit each other or the backbone, or a teacher without weights.
    """
    from objectives.objective import Objective

    suite = pretraining.suite
    objective = Objective(
        pretraining.slots, suite.model, suite.kwargs, suite.input_size, pretraining.crop, suite.fixed_crop,
        pretraining.optimiser.drop_path, num_classes, suite.decoder,
    )
    objective.attach(steps)
    objective.teacher.rehearse()
    return objective


def _name(pretraining: Pretraining) -> str:
    return f"{pretraining.label} seed {pretraining.seed}"


def _about(backbone: Path) -> dict[str, Any]:
    return json.loads((backbone / "backbone.json").read_text())


def _details(about: dict[str, Any], outcome: Outcome | None) -> dict[str, Any] | None:
    """What a reader of the number should know: baselines without learning, and what went wrong in pre-training."""
    told = {"baselines": outcome.baselines if outcome else None, **{key: about.get(key) for key in WARNINGS}}
    return {key: value for key, value in told.items() if value} or None


def _pretrain_seconds(about: dict[str, Any]) -> float | None:
    """Of a backbone from nothing: its own training, and what it shares with other seeds, whichever made it."""
    seconds, shared = about.get("seconds"), about.get("shared_seconds")
    if not isinstance(seconds, int | float) or not isinstance(shared, dict):  # of an older version, or a stranger's
        return seconds
    return round(seconds + sum(part for part in shared.values() if isinstance(part, int | float)), 2)


def _word(device: str, arithmetic: Mapping[str, Any]) -> str:
    """What a pre-training is computed with, in one word."""
    return ",".join([device.partition(":")[0], *(f"{name}={value}" for name, value in arithmetic.items())])


# what marks without such a word stand for: by far the most were made so
_PLAIN = _word("cpu", {"precision": "fp32", "fused": False, "compiled": False})


def _marked(folder: Path) -> tuple[str, str, str]:
    """Whose checkpoints lie in a folder: fingerprint of their settings, the request that began them, :func:`_word`."""
    try:
        settings, request, computed = [*(folder / MARK).read_text().split(), "", ""][:3]
    except (FileNotFoundError, ValueError):
        return "", "", ""
    return settings, request, computed or _PLAIN


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


def sha256(backbone: Path) -> str:
    """Of a backbone's weights."""
    return sha256_of(backbone / "backbone.safetensors")


def _check_settings(cells: Sequence[Cell]) -> None:
    """Refuse what was asked of tasks and they do not know; suites' own settings need no look."""
    from downstream.task import TaskError, check

    asked = [cell for cell in cells if any(key.startswith("task.") for key in cell.pretraining.variant)]
    for cell in {(cell.task.name, cell.protocol, str(cell.settings)): cell for cell in asked}.values():
        try:
            check(cell.task.name, cell.protocol, dict(cell.settings))
        except TaskError as error:
            raise RequestError(str(error)) from error


def check_device(device: str, here: bool = True) -> None:
    """Refuse a device that is none before any work; torch is asked only where it has to be.

    Args:
        here: the work is done on this machine.

    Raises:
        RequestError: as :func:`resolve_device`.
    """
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", device):
        raise RequestError(f"--device {device!r}: write auto, cpu or cuda[:N]")
    if here and device.startswith("cuda"):
        resolve_device(device)


def resolve_device(device: str) -> str:
    """``auto`` is the first CUDA device, or the CPU.

    Raises:
        RequestError: a CUDA device is asked for and there is none.
    """
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise RequestError(f"--device {device}: no CUDA device here; use --device cpu")
    if device.startswith("cuda:") and int(device[5:]) >= torch.cuda.device_count():
        raise RequestError(f"--device {device}: there are {torch.cuda.device_count()} here, counted from 0")
    return device


def set_threads(count: int | None = None) -> None:
    """So many threads, or as many as cores this process may use; more spin against each other.

    Freed memory is kept from then on, as in every process that computes here.
    """
    import torch

    torch.set_num_threads(count or cores())
    keep_freed_memory()


def device_name(device: str) -> str:
    """The device as a reader knows it."""
    hardware = environment(device)["hardware"]
    return hardware.get("accelerator") or f"{hardware['cores']} CPU cores"


def forget_peak_memory() -> None:
    """Let :func:`peak_memory` be that of what comes now; where the system does not offer it, of all that was."""
    import torch

    give_back_memory()
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # VmHWM becomes VmRSS (man proc_pid_clear_refs)
    for device in range(torch.cuda.device_count() if torch.cuda.is_initialized() else 0):
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory(device: str = "cpu") -> int:
    """Largest memory since :func:`forget_peak_memory`, in bytes: allocated on a CUDA device, else resident."""
    import resource
    import sys

    import torch

    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated(device)
    with suppress(OSError, AttributeError):
        return 1024 * int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB on Linux, bytes on macOS
    return peak if sys.platform == "darwin" else peak * 1024
