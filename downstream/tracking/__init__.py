"""Single-object tracking: a Siamese tracker on one backbone, scored by one-pass evaluation (see :func:`evaluate`)."""

from __future__ import annotations

from downstream.task import Job, Outcome


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
