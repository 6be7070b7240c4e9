"""The cache folder: rendered once, complete or absent, shared by processes that start at the same time."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import shutil
import time
import uuid
from dataclasses import asdict
from pathlib import Path

from benchmarks.scenes import VERSION, Progress, SceneError, SceneSpec

RECORD = "scenes.json"
STALE = 3600.0  # seconds after which the folder of a process that may run on another machine is swept away


def recorded(root: Path, spec: SceneSpec) -> str | None:
    """The fingerprint in ``root`` when it belongs to this spec and version."""
    try:
        record = json.loads((root / RECORD).read_text())
        if record["spec"] == asdict(spec) and record["version"] == VERSION:
            return str(record["fingerprint"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return None


def prepare(root: Path, spec: SceneSpec, progress: Progress) -> str:
    """See ``benchmarks.scenes.prepare``."""
    found = recorded(root, spec)
    if found is not None:
        return found
    partial = root.parent / f"{_start(root)}{os.getpid()}.{uuid.uuid4().hex[:8]}.partial"
    from benchmarks.scenes import production  # torch and OpenCV: seconds, which the way above does without

    try:
        root.parent.mkdir(parents=True, exist_ok=True)
        _check_ours(root)
        _sweep(root)
        partial.mkdir()
        fingerprint = production.fill(partial, spec, progress)
        return _install(partial, root, spec, fingerprint)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise SceneError(f"cannot write the scenes to {root}: {reason.lower()}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _check_ours(root: Path) -> None:
    """Refuse to replace a folder that was not written here: it may be somebody's data."""
    if root.exists() and not (root / RECORD).is_file() and (not root.is_dir() or any(root.iterdir())):
        raise SceneError(f"cannot write the scenes to {root}: it holds something else; name another folder")


def _start(root: Path) -> str:
    """How names of unfinished folders of this machine's processes begin; the process's number follows."""
    return f".{root.name}.{platform.node()}."


def _sweep(root: Path) -> None:
    """Remove what killed processes left behind."""
    for folder in root.parent.glob(f".{root.name}.*.partial"):
        process = folder.name.split(".")[-3]
        with contextlib.suppress(OSError):
            ours = folder.name.startswith(_start(root))
            if (ours or time.time() - folder.stat().st_mtime > STALE) and not _alive(process):
                shutil.rmtree(folder, ignore_errors=True)


def _alive(process: str) -> bool:
    try:
        os.kill(int(process), 0)
    except (ProcessLookupError, ValueError):
        return False
    except OSError:
        pass
    return True


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _install(partial: Path, root: Path, spec: SceneSpec, fingerprint: str) -> str:
    """Put the finished folder in its place; when another process was faster, keep that one's."""
    record = {"spec": asdict(spec), "version": VERSION, "fingerprint": fingerprint}
    (partial / RECORD).write_text(json.dumps(record, indent=1) + "\n")
    # The record says that all is there, so all else must have reached the disk before it counts.
    for folder, _, files in os.walk(partial):
        for name in files:
            if name.endswith((".json", ".txt")):
                _flush(Path(folder, name))
        _flush(Path(folder))
    for _ in range(10):
        try:
            os.rename(partial, root)
        except OSError:
            found = recorded(root, spec)
            if found is not None:
                return found
            if not root.exists():
                raise
            # Another version, or one with a broken record: out of the way first.
            _check_ours(root)
            aside = partial.with_suffix(".old.partial")
            with contextlib.suppress(FileNotFoundError):
                os.rename(root, aside)
            shutil.rmtree(aside, ignore_errors=True)
        else:
            _flush(root.parent)
            return fingerprint
    raise OSError(None, "another process keeps changing it")
