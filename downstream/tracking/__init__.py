"""Single-object tracking: a Siamese tracker on one backbone, scored by one-pass evaluation (see :func:`evaluate`)."""

from __future__ import annotations

from typing import Any

from downstream.task import Job, Outcome


def settings_of(job: Job) -> Any:
    """The settings of :func:`evaluate`, a :class:`downstream.tracking.run.Settings`.

    Raises:
        TaskError: one that the task does not know.
    """
    from downstream.engine import quiet

    with quiet("mmdet"):
        from downstream.tracking.run import read_settings

        return read_settings(job.settings)


def evaluate(job: Job) -> Outcome:
    """Train the tracker on the train videos, track the test videos once, score them.

    The settings and their defaults stand in :class:`downstream.tracking.run.Settings`; ``job.data`` is described in
    :func:`downstream.tracking.videos.read_videos`.

    Raises:
        MissingData: a folder, list, annotation or frame is not there.
        TaskError: a setting, annotation or frame that cannot be used; the message names it and the mend.
    """
    from downstream.engine import quiet  # torch and mmdet load only when a cell is computed

    with quiet("mmdet"):
        from downstream.tracking.run import evaluate as run

        return run(job)
