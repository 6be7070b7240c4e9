"""What can be wrong with a request, told in one line, and the exit codes of ``bench``."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

EXIT_FAILED = 1  # a cell without a number, a check that does not hold
EXIT_REQUEST = 2  # the request was wrong; nothing has been touched
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells have it


class RequestError(Exception):
    """The request was wrong (exit code 2); the message is one line naming the thing and the mend."""


def unknown(kind: str, name: str, known: Iterable[str]) -> RequestError:
    """The error for a name that is not registered; offers the nearest one."""
    names = sorted(known)
    lower = {one.lower(): one for one in names}
    near = difflib.get_close_matches(name, names, 1, 0.4) or [
        lower[one] for one in difflib.get_close_matches(name.lower(), lower, 1, 0.4)]
    hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(names)}"
    return RequestError(f"no {kind} {name!r}; {hint}")
