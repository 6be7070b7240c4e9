"""The command ``bench``: its commands put together, and errors turned into one line and an exit code.

Each command is a file of ``benchmarks.commands``; heavy imports happen inside the functions there, so that help and
lists answer in under a second.
"""

from __future__ import annotations

import errno
import sys
import warnings

import typer

from benchmarks import signals
from benchmarks.commands import (
    analyze,
    bundle,
    compare,
    data,
    doctor,
    evaluate,
    leaderboard,
    listing,
    reproduce,
    run,
    speed,
    status,
    visualize,
)
from benchmarks.errors import EXIT_INTERRUPTED, EXIT_REQUEST, RequestError

app = typer.Typer(
    help="Benchmark of image pre-training objectives: one backbone, one budget, five downstream tasks.",
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None,
)
# in the order of the help
app.command()(run.run)
app.command()(run.sweep)
app.command()(status.status)
app.command("eval")(evaluate.eval_)
app.command()(speed.speed)
app.command("list")(listing.list_)
app.command()(leaderboard.leaderboard)
app.command()(compare.compare)
app.command()(bundle.bundle)
app.command()(bundle.verify)
app.command()(reproduce.reproduce)
app.command()(visualize.visualize)
app.command()(analyze.analyze)
app.command()(evaluate.export)
app.command()(doctor.doctor)
app.add_typer(data.app, name="data")

KEEPS = ("run", "sweep", "eval", "reproduce", "analyze")  # what is finished, and go on from there
UsageError = typer.BadParameter.__base__  # of a wrong option; typer carries click within itself and does not export it


def main() -> None:
    """Entry point: errors become one line on stderr and an exit code."""
    from leaderboard.records import RecordError
    from objectives.recipe import ObjectiveError

    signals.install()
    warnings.filterwarnings("ignore")  # optional parts that OpenMMLab's packages miss are no news to a user
    try:
        code = app(standalone_mode=False)
        if code == EXIT_INTERRUPTED:  # typer makes Ctrl-C within a command into an exit code
            _say_interrupted()
        raise SystemExit(code if isinstance(code, int) else 0)
    except typer.Exit as stop:
        raise SystemExit(stop.exit_code) from None
    except UsageError as error:
        print(f"bench: {error.format_message()}", file=sys.stderr)
    except (RequestError, RecordError, ObjectiveError) as error:
        print(f"bench: {error}", file=sys.stderr)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EDQUOT):
            raise
        where = error.filename or "a file below --runs"
        print(f"bench: {where}: {error.strerror}; free space or name another folder", file=sys.stderr)
    except (KeyboardInterrupt, typer.Abort):
        _say_interrupted()
        raise SystemExit(EXIT_INTERRUPTED) from None
    raise SystemExit(EXIT_REQUEST)


def _say_interrupted() -> None:
    goes_on = "finished cells are kept, the same command goes on"
    words = goes_on if sys.argv[1:2] and sys.argv[1] in KEEPS else "nothing is kept of what was under way"
    print(f"bench: interrupted; {words}", file=sys.stderr)


if __name__ == "__main__":
    main()
