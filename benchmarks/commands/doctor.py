"""``bench doctor``: is this machine ready?"""

from __future__ import annotations

import typer

from benchmarks.errors import EXIT_FAILED


def doctor() -> None:
    """Check versions, operators and devices.

    Exit 1 with the fix when something is wrong.
    """
    from benchmarks.doctor import examine

    findings = examine()
    for finding in findings:
        print(f"{'ok  ' if finding.ok else 'BAD '} {finding.name}: {finding.text}")
    if not all(finding.ok for finding in findings):
        raise typer.Exit(EXIT_FAILED)
