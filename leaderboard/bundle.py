"""A row's evidence in one zip file for a reviewer, and the check of such a file on another machine.

Layout: ``manifest.json`` and, below ``records/``, the folders of the records as they lie under a folder of runs
(``<suite>/<objective>/seed<k>/<task>.<protocol>/result.json`` with logs; ``…/pretrain/backbone.json``), never weights.
The manifest names every file with size and sha256, the table recomputed from the records, and a command a record.

The hashes show damage and careless editing. They are no signature: who forges a whole bundle can compute them anew,
and only running the command again can show that.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import tempfile
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from .records import FILE_NAME, InvalidRecord, Record, RecordError, parse_record, read_record
from .render import render
from .table import build

SCHEMA = 1
MANIFEST = "manifest.json"
KEPT = (FILE_NAME, "log.jsonl", "backbone.json")

# A bundle of 25 objectives, 5 tasks and 10 seeds has some 3,000 files of some kB: the limits are far above.
MAX_FILES = 20_000
MAX_FILE_BYTES = 64 * 2**20
MAX_BYTES = 512 * 2**20
MAX_RATIO = 200  # unpacked by packed size of one file; JSON packs to about a tenth, deflate can reach 1032
RATIO_FROM = 2**20  # smaller files may be as regular as they like
_EPOCH = (1980, 1, 1, 0, 0, 0)  # zip's earliest time: the same records give the same bytes


class BundleError(ValueError):
    """The bundle cannot be made or must not be opened; one line."""


def row_folder(row: str, roots: Sequence[Path]) -> Path:
    """The folder that ``row`` names: a path, or ``suite/objective[/seed0[/task.protocol]]`` below one of ``roots``.

    Raises:
        BundleError: no such folder, or no record in it.
    """
    given = Path(row)
    if given.name == FILE_NAME:
        given = given.parent
    for folder in (given, *(root / given for root in roots)):
        if folder.is_dir() and next(folder.rglob(FILE_NAME), None):
            return folder
    where = ", ".join(map(str, ("here", *roots)))
    raise BundleError(f"no records at {row!r} (looked {where}); name a row like embedded/mae/seed0/depth.frozen")


def records_of(folder: Path) -> list[Record]:
    """All records below ``folder``, in the order of their paths.

    Raises:
        InvalidRecord: one of them is not to be trusted.
    """
    return [read_record(path) for path in sorted(folder.rglob(FILE_NAME))]


def bundle(folder: Path, output: Path) -> int:
    """Write the records below ``folder`` and what lies beside them to a zip file; return the number of records.

    Raises:
        InvalidRecord: a record is not to be trusted.
        RecordError: the file cannot be written.
        BundleError: no records, or of several suites.
    """
    records = records_of(folder)
    if len({record.suite for record in records}) != 1:
        raise BundleError(f"{folder}: records of {len({r.suite for r in records})} suites; name one row")
    files: dict[str, bytes] = {}
    for record in records:
        assert record.path is not None
        seed = record.path.parent.parent
        for part in (record.path.parent, seed / "pretrain"):
            # The last four names are <suite>/<objective>/seed<k>/<part> wherever the runs folder lies.
            names = part.resolve().parts[-4:]
            for name in KEPT:
                source = part / name
                if source.is_file() and source.stat().st_size <= MAX_FILE_BYTES:
                    files["/".join(("records", *names, name))] = source.read_bytes()
    manifest = {
        "schema": SCHEMA, "suite": records[0].suite,
        "files": {name: {"bytes": len(data), "sha256": _sha256(data)} for name, data in sorted(files.items())},
        "table": json.loads(render(build(records), "json")),
        "commands": sorted({record.command for record in records}),
    }  # fmt: skip
    files[MANIFEST] = (json.dumps(manifest, indent=1, sort_keys=True) + "\n").encode()
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=output.parent, prefix=f".{output.name}.", delete=False) as temporary:
            try:
                with zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:
                    for name, data in sorted(files.items()):
                        archive.writestr(_entry(name), data)
                temporary.flush()
                os.fsync(temporary.fileno())
                os.chmod(temporary.name, 0o644)
                os.replace(temporary.name, output)
            except BaseException:
                os.unlink(temporary.name)
                raise
    except OSError as error:
        raise RecordError(f"cannot write {output}: {error.strerror or error}; name another file") from error
    return len(records)


def _entry(name: str) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name, _EPOCH)
    entry.compress_type = zipfile.ZIP_DEFLATED
    entry.external_attr = (stat.S_IFREG | 0o644) << 16
    return entry


def verify(path: Path) -> list[tuple[bool, str]]:
    """Check a bundle without unpacking it to disk.

    Returns:
        (whether it holds, one line) for each check, the first failed ones of a kind named.

    Raises:
        BundleError: the file is no zip file, or one that must not be opened: a path that leads out, a link, an
            encrypted or doubled entry, or more or larger files than the limits above.
    """
    files = _unpacked(path)
    found: list[tuple[bool, str]] = []
    manifest = _manifest(path, files.pop(MANIFEST, None))
    listed = manifest["files"]
    missing, extra = sorted(set(listed) - set(files)), sorted(set(files) - set(listed))
    found.append((not missing, f"files: {len(listed)} listed" + (f", missing {missing[0]!r}" if missing else "")))
    if extra:
        found.append((False, f"files: {extra[0]!r} is not in the manifest"))
    changed = [name for name in sorted(set(listed) & set(files)) if not _same(listed[name], files[name])]
    found.append((not changed, "fingerprints: " + (f"{changed[0]!r} differs" if changed else "all files as listed")))
    records, broken = [], []
    for name, data in sorted(files.items()):
        if PurePosixPath(name).name != FILE_NAME:
            continue
        try:
            record = parse_record(data, Path(f"{path}:{name}"))
            records.append(record)
            if reason := _misplaced(record, PurePosixPath(name)):
                broken.append(f"{name}: {reason}")
        except InvalidRecord as error:
            broken.append(str(error))
    doubled = len(records) - len({record.cell for record in records})
    found.append((bool(records) and not broken, f"invariants: {len(records)} records"
                  + (f"; {broken[0]}" if broken else " hold theirs")))
    if doubled:
        found.append((False, f"invariants: {doubled} cells more than once"))
    found.append(_recomputed(records, manifest))
    commands = sorted({record.command for record in records})
    found.append((commands == manifest.get("commands"), f"commands: {len(commands)}, as the records give them"))
    return found


def _recomputed(records: list[Record], manifest: dict[str, Any]) -> tuple[bool, str]:
    if not records or len({record.suite for record in records}) != 1:
        return False, "aggregates: no records of one suite to recompute them from"
    table = json.loads(render(build(records), "json"))
    if table == manifest.get("table"):
        cells = sum(cell["status"] == "ok" for row in table["rows"] for cell in row["cells"].values())
        return True, f"aggregates: {cells} cells recomputed, equal"
    return False, "aggregates: recomputed from the records they differ from the manifest's"


def _misplaced(record: Record, name: PurePosixPath) -> str | None:
    """Why the record does not belong where it lies, or None."""
    parts = name.parts
    objective = record.objective
    if len(parts) != 6 or parts[0] != "records":
        return "not at records/<suite>/<objective>/seed<k>/<task>.<protocol>"
    wanted = (record.suite, f"seed{record.seed}", f"{record.task}.{record.protocol}")
    if (parts[1], parts[3], parts[4]) != wanted or parts[2].split("@")[0] != objective:
        return f"holds the record of {record.suite}/{objective}/{'/'.join(wanted[1:])}"
    return None


def _manifest(path: Path, data: bytes | None) -> dict[str, Any]:
    if data is None:
        raise BundleError(f"{path}: no {MANIFEST} in it; not a bundle")
    try:
        manifest = json.loads(data)
        if manifest["schema"] != SCHEMA:
            raise BundleError(f"{path}: bundle of schema {str(manifest['schema'])[:20]}, known is {SCHEMA}")
        if not all(isinstance(value, dict) for value in manifest["files"].values()):
            raise ValueError("files")
    except BundleError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise BundleError(f"{path}: {MANIFEST} is damaged") from error
    return manifest


def _same(listed: dict[str, Any], data: bytes) -> bool:
    return listed.get("bytes") == len(data) and listed.get("sha256") == _sha256(data)


def _unpacked(path: Path) -> dict[str, bytes]:
    """Name -> content, in memory; every limit is checked while unpacking, whatever the zip's directory claims."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            if len(entries) > MAX_FILES:
                raise BundleError(f"{path}: {len(entries)} files, more than {MAX_FILES}")
            files: dict[str, bytes] = {}
            left = MAX_BYTES
            for entry in entries:
                _check_name(path, entry)
                if entry.is_dir():
                    continue
                if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # as `bench bundle` writes
                    raise BundleError(f"{path}: {_shown(entry)} is packed by another method than deflate; "
                                      "pack the row again by `bench bundle`")
                if entry.filename in files:
                    raise BundleError(f"{path}: {_shown(entry)} is in it twice")
                most = min(MAX_FILE_BYTES, left)
                if entry.compress_size * MAX_RATIO < entry.file_size and entry.file_size > RATIO_FROM:
                    raise BundleError(f"{path}: {_shown(entry)} unpacks to more than {MAX_RATIO} times its size")
                if entry.file_size > most:
                    raise BundleError(f"{path}: {_shown(entry)} unpacks to more than {most} bytes")
                with archive.open(entry) as file:
                    data = file.read(most + 1)
                if len(data) > most:
                    raise BundleError(f"{path}: {_shown(entry)} unpacks to more than {most} bytes")
                left -= len(data)
                files[entry.filename] = data
            return files
    except BundleError:
        raise
    except OSError as error:
        raise BundleError(f"{path}: cannot be read ({error.strerror or error})") from error
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, RuntimeError, NotImplementedError) as error:
        raise BundleError(f"{path}: not a whole zip file ({' '.join(str(error).split())[:100]})") from error


def _check_name(path: Path, entry: zipfile.ZipInfo) -> None:
    name = entry.orig_filename
    mode = entry.external_attr >> 16
    parts = name.rstrip("/").split("/")
    if name.startswith("/") or "\\" in name or ":" in parts[0] or any(part in ("", ".", "..") for part in parts):
        raise BundleError(f"{path}: {_shown(entry)} leads out of the bundle")
    if not name.isprintable() or len(name) > 1000:
        raise BundleError(f"{path}: {_shown(entry)} is no name for a file")
    if stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise BundleError(f"{path}: {_shown(entry)} is a link or a device")
    if entry.flag_bits & 1:
        raise BundleError(f"{path}: {_shown(entry)} is encrypted")


def _shown(entry: zipfile.ZipInfo) -> str:
    return ascii(entry.orig_filename)[:120]


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
