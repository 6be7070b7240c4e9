"""What mmengine's Runner leaves behind in a process: an open log file, a logger and a message hub of every run."""

from __future__ import annotations

import io
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout


@contextmanager
def quiet() -> Iterator[None]:
    """Without what OpenMMLab prints when imported, and says of each weight of a model; errors are still heard."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(before)


def close_runs() -> None:
    """Close the files and forget the rest. Without it some three hundred cells in a process use up its open files."""
    if "mmengine.logging" not in sys.modules:
        return
    from mmengine.logging import MessageHub, MMLogger

    for logger in MMLogger._instance_dict.values():  # mmengine has no other way to them
        for handler in logger.handlers:
            handler.close()
    MMLogger._instance_dict.clear()
    MessageHub._instance_dict.clear()
