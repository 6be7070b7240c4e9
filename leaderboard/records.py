"""What one cell found: a frozen dataclass, kept as ``result.json`` in the cell's folder.

A record may come from anybody, so reading trusts nothing: whatever stands in the file, :func:`read_record` returns a
checked record or raises :class:`InvalidRecord`. Writing goes through a temporary file, ``fsync`` and a rename, so that
several processes never leave a half-written or mixed file.
"""

from __future__ import annotations

import errno
import gc
import hashlib
import json
import math
import os
import secrets
import shlex
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, NoReturn, TypedDict

SCHEMA = 1
FILE_NAME = "result.json"
ANALYSIS = "analysis.json"  # a record that describes a backbone: of this schema, never in a ranked table
STATUSES = ("ok", "failed", "skipped")

_MAX_BYTES = 256 * 2**20  # far above any record with per-item scores; keeps a stray huge file out of memory
_LARGEST = 1e30
_SKIPPED_FOLDERS = frozenset({"mmengine", "pretrain"})  # logs and weights: never hold records, may hold many files
_UNPROTECTED = frozenset({"environment", "started", "finished", "digest"})  # not covered by the digest
WARNINGS = {"collapse": "features collapsed", "untaught": "nothing was learned"}
"""Keys of details, and of backbone.json, that hold why a pre-training is not what it should be -> in words."""
_NOTES = ("baselines", *WARNINGS, "between")  # of details: what a record says beside its own result
_MEASURED_COST = ("pretrain_seconds", "seconds", "device", "peak_memory_bytes")  # differ from machine to machine
_ENVIRONMENT = ("python", "packages", "git_commit", "dirty", "hardware")
_FINGERPRINTS = ("cell", "config", "data", "backbone")


class RecordError(RuntimeError):
    """A record cannot be written, or a folder of records cannot be read; one line with the path and the mend."""


class InvalidRecord(ValueError):
    """The file at ``path`` is not a record to be trusted, because of ``reason`` (one line).

    ``cell`` says which cell it claims to be, where that much could be read, else None.
    """

    def __init__(self, path: Path, reason: str, cell: Cell | None = None) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = path
        self.reason = reason
        self.cell = cell


class Cell(NamedTuple):
    """What makes a cell the same cell in two folders. ``variant`` is canonical JSON, to be hashable."""

    suite: str
    objective: str
    variant: str
    backbone: str
    budget: str
    task: str
    task_version: int
    protocol: str
    seed: int


class Metric(TypedDict):
    """One number of a task. ``low`` and ``high`` bound the values that are possible at all; None is no bound."""

    value: float
    higher_is_better: bool
    unit: str  # "%" (0 to 100), "m", … or "" for a bare number
    main: bool  # true for exactly one metric: the one that ranks
    low: float | None
    high: float | None


class Cost(TypedDict):
    """What the cell cost. None where it is unknown, as for weights from elsewhere."""

    pretrain_images: int | None  # seen in pre-training, repetitions counted
    pretrain_seconds: float | None
    train_images: int | None  # seen while the task's head (or the whole model) was trained
    seconds: float | None  # of the task: training and scoring
    device: str
    flops: float | None
    peak_memory_bytes: int | None


@dataclass(frozen=True)
class Record:
    """The result of one cell: (suite, objective, variant, backbone, budget, task, protocol, seed).

    ``digest`` covers every field but the environment, the two times and itself; :func:`write_record` fills it in.
    """

    suite: str
    budget: str  # "default", or the name of another budget of the suite
    objective: str
    variant: dict[str, Any]  # option -> value where it differs from the suite's recipe; empty for the plain objective
    backbone: str  # timm's name
    task: str
    task_version: int
    protocol: str
    seed: int
    status: str  # one of STATUSES
    reason: str | None  # why it failed or was skipped
    metrics: dict[str, Metric]
    cost: Cost
    environment: dict[str, Any]  # python, packages, git_commit, dirty, hardware
    fingerprints: dict[str, str | None]  # cell, config, data, backbone (sha256 in hexadecimal)
    config: dict[str, Any]  # fully resolved
    started: str  # ISO 8601
    finished: str
    items: dict[str, list[float]] | None = None  # metric -> one score per test item, in order
    chosen: dict[str, Any] | None = None  # what a part cut from the training data chose: learning rate, layer, k, …
    # of an analysis: what was found, by layer; of a task: `baselines`, see the property, and WARNINGS
    details: dict[str, Any] | None = None
    schema: int = SCHEMA
    digest: str = ""
    path: ClassVar[Path | None] = None  # no field: the file that this one was read from, where it was

    @cached_property
    def cell(self) -> Cell:
        return Cell(
            self.suite, self.objective, _canonical(self.variant), self.backbone, self.budget,
            self.task, self.task_version, self.protocol, self.seed,
        )

    @cached_property
    def main_metric(self) -> tuple[str, Metric] | None:
        """Name and metric of the one that ranks; None where there is none (failed, skipped)."""
        return next(((name, metric) for name, metric in self.metrics.items() if metric["main"]), None)

    @property
    def baselines(self) -> dict[str, dict[str, float]]:
        """Metric -> what scores so on the same items without having learned anything; empty where none is known."""
        return (self.details or {}).get("baselines", {})

    @property
    def weights(self) -> dict[str, Any] | None:
        """Where the backbone came from, of ``bench eval``; None where the suite trained it."""
        made = self.config.get("pretraining")
        weights = made.get("weights") if isinstance(made, dict) else None
        return weights if isinstance(weights, dict) else None

    @property
    def command(self) -> str:
        """The exact command that asks for this cell, for a shell."""
        weights = self.weights
        if weights is None:
            words = ["bench", "run", "--suite", self.suite, "--objective", self.objective, "--tasks", self.task]
            words += ["--protocol", self.protocol, "--budget", self.budget, "--seed", str(self.seed)]
        else:
            words = ["bench", "eval", "--backbone", str(weights.get("backbone")), "--name", self.objective]
            for option in ("layout", "heads", "patch-size", "recipe"):
                if weights.get(option) and weights[option] != "folder":
                    words += [f"--{option}", str(weights[option])]
            words += ["--suite", self.suite, "--tasks", self.task, "--protocol", self.protocol]
            words += ["--seed", str(self.seed)]
        for option, value in self.variant.items():
            words += ["--cfg-options", f"{option}={value if isinstance(value, str) else _python(value)}"]
        return shlex.join(words)


_FIELDS = {field.name: field for field in fields(Record)}
_OPTIONAL = ("items", "chosen", "details")  # left out where they are None
_REQUIRED = tuple(name for name in _FIELDS if name not in _OPTIONAL)


# --- writing ----------------------------------------------------------------------------------------------------------


def checked(record: Record) -> Record:
    """The record as it will be read back: plain JSON types, digest filled in, every invariant checked.

    Raises:
        RecordError: a value is no JSON (NaN, an array, …) or breaks an invariant. The caller should then record the
            cell as failed, with the message as its reason.
    """
    try:
        payload = json.loads(_canonical({name: getattr(record, name) for name in _FIELDS}))
        payload["digest"] = _digest(payload)
        return _parse(payload)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        name = f"{record.objective} {record.task}.{record.protocol} seed {record.seed}"
        raise RecordError(f"the result of {name} is not a valid record: {_one_line(error)}") from error


def write_record(folder: Path, record: Record, file_name: str = FILE_NAME) -> Path:
    """Write ``folder/result.json``, or ``file_name`` there (the folder is made when missing), and return its path.

    The file appears whole or not at all, and is on the disk when this returns.

    Raises:
        RecordError: the record is not valid (see :func:`checked`), or the folder cannot be written.
    """
    record = checked(record)
    payload = {name: getattr(record, name) for name in sorted(_FIELDS)}
    payload = {name: value for name, value in payload.items() if value is not None or name not in _OPTIONAL}
    text = json.dumps(payload, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    path = folder / file_name
    # A name of its own for every writer: two processes on the same cell must not write into one temporary file.
    temporary = folder / f".{file_name}.{os.getpid()}.{secrets.token_hex(4)}.tmp"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with open(temporary, "x", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            with suppress(OSError):
                os.unlink(temporary)
            raise
    except OSError as error:
        raise RecordError(f"cannot write {path}: {error.strerror or error}; {_mend(error)}") from error
    _sync_folder(folder)
    return path


def _sync_folder(folder: Path) -> None:
    # Some network file systems refuse to sync a folder; the record itself is safe by then.
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _mend(error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "free some space or choose another folder"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return "make the folder writable or choose another one"
    return "choose another folder"


# --- reading ----------------------------------------------------------------------------------------------------------


def read_record(path: Path) -> Record:
    """Read and check one record.

    Raises:
        InvalidRecord: anything at all is wrong with the file; no other exception leaves, whatever the file holds.
    """
    try:
        content = _read_bytes(path)
    except OSError as error:
        raise InvalidRecord(path, f"cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise InvalidRecord(path, _one_line(error)) from error
    return parse_record(content, path)


def parse_record(content: bytes, path: Path) -> Record:
    """A checked record from the bytes of a file called ``path``.

    Raises:
        InvalidRecord: as :func:`read_record`.
    """
    payload: Any = None
    try:
        payload = _STRICT.decode(content.decode("utf-8"))
        record = _parse(payload)
        object.__setattr__(record, "path", path)
        return record
    except UnicodeDecodeError as error:
        raise InvalidRecord(path, f"not UTF-8 text (byte {error.start})") from error
    except json.JSONDecodeError as error:
        raise InvalidRecord(path, f"not JSON: {error.msg} (line {error.lineno})") from error
    except RecursionError as error:
        raise InvalidRecord(path, "nested too deeply") from error
    except (ValueError, OverflowError) as error:
        raise InvalidRecord(path, _one_line(error), _claimed_cell(payload)) from error


def read_records(
    roots: Sequence[Path], file_name: str = FILE_NAME
) -> tuple[list[Record], list[InvalidRecord]]:
    """Every record below the folders, in the order of their paths, and what is wrong with the others.

    A cell found more than once counts once where the results are the same (:func:`same_result`); a number takes
    precedence over a failure. Where numbers contradict each other nobody can say which is right: all of the cell are
    reported as invalid.

    Raises:
        RecordError: one of ``roots`` is no folder.
    """
    records: list[tuple[Path, Record]] = []
    invalid: list[InvalidRecord] = []
    seen: set[object] = set()
    with no_collection():
        for root in roots:
            if not root.is_dir():
                raise RecordError(f"no folder {root}; run something first or name another folder of runs")
            for path in _find(root, invalid, file_name):
                if len(roots) > 1:  # one root may lie inside another
                    if (file := _file(path)) in seen:
                        continue
                    seen.add(file)
                try:
                    records.append((path, read_record(path)))
                except InvalidRecord as error:
                    invalid.append(error)
    return _merge(records, invalid), invalid


def same_result(a: Record, b: Record) -> bool:
    """Whether two records agree bit by bit, but for times, environment, and the measured part of the cost."""
    return _outcome(a) == _outcome(b)


@contextmanager
def no_collection() -> Iterator[None]:
    """No search for garbage meanwhile: records and tables have no cycles, and it costs a fifth of their time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _file(path: Path) -> object:
    """The same for all names of one file."""
    try:
        status = os.stat(path)
    except OSError:
        return path
    return (status.st_dev, status.st_ino) if status.st_ino else path.resolve()


def _find(root: Path, invalid: list[InvalidRecord], file_name: str) -> Iterator[Path]:
    """Paths of records below ``root``, sorted; folders that cannot be listed go to ``invalid``."""
    folders = [str(root)]
    while folders:
        folder = folders.pop()
        try:
            with os.scandir(folder) as entries:
                found = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            invalid.append(InvalidRecord(Path(folder), f"cannot be listed: {error.strerror or error}"))
            continue
        # Links to folders are not followed: they may lead in a circle.
        below = [e.path for e in found if e.is_dir(follow_symlinks=False) and e.name not in _SKIPPED_FOLDERS]
        folders += reversed(below)
        yield from (Path(entry.path) for entry in found if entry.name == file_name and not entry.is_dir())


def _merge(records: list[tuple[Path, Record]], invalid: list[InvalidRecord]) -> list[Record]:
    by_cell: dict[Cell, list[tuple[Path, Record]]] = {}
    for path, record in records:
        by_cell.setdefault(record.cell, []).append((path, record))
    merged = []
    for cell, found in by_cell.items():
        candidates = [pair for pair in found if pair[1].status == "ok"] or found[:1]
        first_path, first = candidates[0]
        others = [(path, record) for path, record in candidates[1:] if not same_result(first, record)]
        if not others:
            merged.append(first)
            continue
        unlike_first = {path for path, _ in others}
        for path, record in candidates:  # also those that agree with the first: they are kept out as much as it is
            other_path, other = (first_path, first) if path in unlike_first else others[0]
            reason = _contradiction(record, other)
            invalid.append(InvalidRecord(path, f"contradicts {other_path}: {reason}", cell))
    return merged


def _contradiction(a: Record, b: Record) -> str:
    """In what two records of one cell differ, ``a`` first; one line."""
    parts = []
    if a.main_metric and b.main_metric and a.main_metric != b.main_metric:
        (name, mine), (other, theirs) = a.main_metric, b.main_metric
        parts.append(f"{name} {mine['value']:.6g} here, {other} {theirs['value']:.6g} there")
    for name in _FINGERPRINTS[1:]:
        mine_of, theirs_of = a.fingerprints[name], b.fingerprints[name]
        if mine_of != theirs_of:
            parts.append(f"{name} fingerprint {_show((mine_of or 'none')[:12])} here, "
                         f"{_show((theirs_of or 'none')[:12])} there")
    return f"same cell, another result ({'; '.join(parts) or 'other scores or settings'})"


def _read_bytes(path: Path) -> bytes:
    # Opened without blocking: a named pipe in place of the file would otherwise wait for ever.
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("not a file")
        if status.st_size > _MAX_BYTES:
            raise ValueError(f"{status.st_size} bytes, more than the {_MAX_BYTES} a record may have")
        content = os.read(descriptor, status.st_size)
        while len(content) < status.st_size and (more := os.read(descriptor, status.st_size - len(content))):
            content += more
        return content
    finally:
        os.close(descriptor)


# --- checks -----------------------------------------------------------------------------------------------------------


def _parse(payload: Any) -> Record:
    """A record from parsed JSON. Raises ValueError (or RecursionError, OverflowError) with the reason."""
    _mapping(payload, "the record")
    schema = _whole(payload.get("schema"), "schema", 1)
    if schema > SCHEMA:
        raise ValueError(f"schema {schema} is newer than {SCHEMA}, the newest known here; update this package")
    _keys(payload, _REQUIRED, "the record")
    if unknown := sorted(set(payload) - set(_FIELDS)):
        raise ValueError(f"unknown field {_show(unknown[0])}")
    _check_identity(payload)
    # Refuses infinities (1e999) and lone surrogates; in all the other fields computing the digest does.
    _canonical([payload["environment"], payload["started"], payload["finished"]]).encode("utf-8")
    record = Record(**payload)
    _check_outcome(record)
    _check_context(record)
    if record.digest != _digest(payload):
        raise ValueError("the digest does not fit: a value was edited after the record was written")
    return record


def _check_identity(payload: Mapping[str, Any]) -> None:
    for name in ("suite", "budget", "objective", "backbone", "task", "protocol"):
        _name(payload[name], name)
    for name in ("task", "protocol"):
        if "." in payload[name]:  # together they name a folder and a column, as in depth.frozen
            raise ValueError(f"{name} is {_show(payload[name])}, but must not contain a full stop")
    _whole(payload["task_version"], "task_version", 1)
    _whole(payload["seed"], "seed", 0)
    for option in _mapping(payload["variant"], "variant"):
        _name(option, "option in variant")


def _check_outcome(record: Record) -> None:
    if record.status not in STATUSES:
        raise ValueError(f"status is {_show(record.status)}, not one of {', '.join(STATUSES)}")
    if not (record.reason is None or isinstance(record.reason, str)):
        raise ValueError(f"reason is {_show(record.reason)}, not text")
    if record.status != "ok" and not (record.reason or "").strip():
        raise ValueError(f"{record.status} without a reason")
    for name, metric in _mapping(record.metrics, "metrics").items():
        _name(name, "name of a metric")
        _check_metric(name, metric)
    mains = [name for name, metric in record.metrics.items() if metric["main"]]
    if len(mains) != 1 and (record.status == "ok" or mains):
        raise ValueError(f"{len(mains)} main metrics instead of one")
    for name, scores in _mapping({} if record.items is None else record.items, "items").items():
        if not isinstance(scores, list):
            raise ValueError(f"items of {_show(name)} are {_show(scores)}, not a list")
        where = f"an item of {_show(name)}"
        for score in scores:
            _number(score, where)
    for name in _mapping({} if record.chosen is None else record.chosen, "chosen"):
        _name(name, "name in chosen")
    _mapping({} if record.details is None else record.details, "details")
    for metric, scores in _mapping(record.baselines, "baselines").items():
        for name, score in _mapping(scores, f"baselines of {_show(metric)}").items():
            _name(name, "name of a baseline")
            _number(score, f"baseline {_show(name)}")


def _check_metric(name: str, metric: Any) -> None:
    _keys(_mapping(metric, name), tuple(Metric.__annotations__), name)
    value = _number(metric["value"], name)
    low = -math.inf if metric["low"] is None else _number(metric["low"], f"{name}.low")
    high = math.inf if metric["high"] is None else _number(metric["high"], f"{name}.high")
    for flag in ("main", "higher_is_better"):
        if not isinstance(metric[flag], bool):
            raise ValueError(f"{name}.{flag} is {_show(metric[flag])}, neither true nor false")
    if not isinstance(metric["unit"], str) or not (metric["unit"] == "" or metric["unit"].isprintable()):
        raise ValueError(f"{name}.unit is {_show(metric['unit'])}, not text")
    # The record brings its own bounds, so two that no submission can widen: a percentage, and an error in metres
    # that would be zero only if the answers had leaked into the input.
    if metric["unit"] == "%":
        low, high = max(low, 0.0), min(high, 100.0)
    if not low <= value <= high:
        raise ValueError(f"{name} = {value!r} is outside {low:g} … {high:g}")
    if name.lower() == "rmse" and value <= 0:
        raise ValueError(f"{name} = {value!r} is not above 0")


def _check_context(record: Record) -> None:
    cost: Mapping[str, Any] = _mapping(record.cost, "cost")
    _keys(cost, tuple(Cost.__annotations__), "cost")
    for name in Cost.__annotations__:
        if name == "device":
            _name(cost[name], "cost.device")
        elif cost[name] is not None and name in ("pretrain_images", "train_images", "peak_memory_bytes"):
            _whole(cost[name], f"cost.{name}", 0)
        elif cost[name] is not None and _number(cost[name], f"cost.{name}") < 0:
            raise ValueError(f"cost.{name} = {_show(cost[name])} is below 0")
    _keys(_mapping(record.environment, "environment"), _ENVIRONMENT, "environment")
    for name in ("packages", "hardware"):
        _mapping(record.environment[name], f"environment.{name}")
    _keys(_mapping(record.fingerprints, "fingerprints"), _FINGERPRINTS, "fingerprints")
    for name, value in record.fingerprints.items():
        if not (isinstance(value, str) or (value is None and name != "cell")):
            raise ValueError(f"fingerprints.{name} is {_show(value)}, not text")
    _mapping(record.config, "config")
    for name in ("started", "finished"):
        moment = getattr(record, name)
        try:
            datetime.fromisoformat(moment)
        except (TypeError, ValueError):
            raise ValueError(f"{name} is {_show(moment)}, not a time in ISO 8601") from None
    if not isinstance(record.digest, str):
        raise ValueError(f"digest is {_show(record.digest)}, not text")


def _mapping(value: Any, name: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{name} is {_show(value)}, not an object")
    return value


def _keys(value: Mapping[str, Any], names: Sequence[str], where: str) -> None:
    if missing := [name for name in names if name not in value]:
        raise ValueError(f"{missing[0]!r} is missing in {where}")


def _name(value: Any, where: str) -> None:
    # Printable text only: no line breaks or terminal escapes can reach a table through a name.
    if not isinstance(value, str) or not value.strip() or not value.isprintable() or len(value) > 200:
        raise ValueError(f"{where} is {_show(value)}, not a name of 1 to 200 printable characters")


def _whole(value: Any, name: str, least: int) -> int:
    if type(value) is not int or not least <= value < 2**63:
        raise ValueError(f"{name} is {_show(value)}, not a whole number from {least}")
    return value


def _number(value: Any, name: str) -> float:
    # The bound lets sums and squares of numbers be formed without overflow.
    if type(value) not in (int, float) or not -_LARGEST <= value <= _LARGEST:
        raise ValueError(f"{name} is {_show(value)}, not a number between -{_LARGEST:g} and {_LARGEST:g}")
    return float(value)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"holds {name}, which is no number")


def _claimed_cell(payload: Any) -> Cell | None:
    """The cell that a broken record claims to be, or None."""
    try:
        _check_identity(payload)
        variant = _canonical(payload["variant"])
        variant.encode("utf-8")
        return Cell(**{name: payload[name] for name in Cell._fields} | {"variant": variant})
    except (TypeError, KeyError, ValueError, RecursionError):
        return None


# --- canonical form ---------------------------------------------------------------------------------------------------

# made once: the functions of json make one for each call with options, a tenth of the reading of many records
# (records come from JSON or go there, so that nothing in them goes round in a circle)
_CANONICAL = json.JSONEncoder(
    sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False, check_circular=False
)
_STRICT = json.JSONDecoder(parse_constant=_refuse_constant)


def _canonical(value: Any) -> str:
    return _CANONICAL.encode(value)


def _digest(payload: Mapping[str, Any]) -> str:
    # items: null and no items are the same record.
    kept = {k: v for k, v in payload.items() if k not in _UNPROTECTED and not (k in _OPTIONAL and v is None)}
    return hashlib.sha256(_canonical(kept).encode("utf-8")).hexdigest()


def _outcome(record: Record) -> str:
    # records made before there were `chosen` and what stands in details now are the same results
    kept = {name: getattr(record, name) for name in _FIELDS if name not in _UNPROTECTED and name != "chosen"}
    kept["cost"] = {name: value for name, value in record.cost.items() if name not in _MEASURED_COST}
    kept["details"] = {name: value for name, value in (record.details or {}).items() if name not in _NOTES}
    return _canonical(kept)


def _python(value: Any) -> str:
    """The value as a Python literal, which is what options are read as."""
    try:
        return repr(value)
    except RecursionError:
        return "…"


def _show(value: Any) -> str:
    """The value for a message: short, on one line, without characters that a terminal obeys."""
    try:
        text = ascii(value)
    except (ValueError, RecursionError):  # a number of thousands of digits, or too deep
        text = type(value).__name__
    return text if len(text) <= 60 else text[:57] + "…"


def _one_line(error: Exception) -> str:
    if isinstance(error, UnicodeEncodeError):
        return "holds half a character (a lone surrogate)"
    if isinstance(error, RecursionError):
        return "nested too deeply"
    return " ".join(str(error).split())
