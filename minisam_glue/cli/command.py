"""One command from its first word to its exit status: whatever a user can mend becomes one line on standard error."""

import logging
import signal
import sys
from argparse import Namespace

from ..models import Models
from ..support.processes import CLOSED_PIPE, escape_unknown_letters, lead_nowhere, on_signals, stop
from .arguments import with_flag
from .console import failed, out_of_memory, too_large
from .correct import correct
from .parser import parse_arguments
from .run import Run, download


def run_command(argv: list[str] | None, models: Models | None) -> int:
    """See cli.main."""
    escape_unknown_letters()
    logging.getLogger("PIL").setLevel(logging.CRITICAL)  # what it can't read is refused in our words
    args = None
    try:
        with on_signals(stop):
            args = parse_arguments(argv)
            status = run(args, models)
    except BrokenPipeError:  # the reader of what --download lists has gone
        status = 128 + CLOSED_PIPE
    except KeyboardInterrupt as stopped:
        status = 128 + getattr(stopped, "number", signal.SIGINT)
    except (ValueError, OSError, RuntimeError, MemoryError) as error:
        # MediaError, WeightsError and other usage or input errors; or no memory, however that is said
        if not out_of_memory(error) and isinstance(error, RuntimeError):
            raise
        text = error if isinstance(error, OSError) else with_flag(error)
        status = failed(too_large(args) if args and out_of_memory(error) else text)
    finally:
        can_write = flush_output()
    return status if can_write else 128 + CLOSED_PIPE


def run(args: Namespace, models: Models | None) -> int:
    """Do what a command asks for. Returns the exit status."""
    if args.download:
        return download(args)
    return correct(args, models) if args.correct else Run(args, models).all()


def flush_output() -> bool:
    """Flush standard output now: where it can't be written, Python would fail again at its end. False if its reader
    has gone."""
    try:
        sys.stdout.flush()
    except OSError as error:
        lead_nowhere(sys.stdout)
        return not isinstance(error, BrokenPipeError)
    return True
