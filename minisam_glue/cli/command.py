"""One command from its first word to its exit status: whatever a user can mend becomes one line on standard error."""

import signal
import sys

from ..models import Models
from ..processes import CLOSED_PIPE, leads_nowhere, on_signals, stop
from .arguments import with_flag
from .console import TOO_LARGE, failed, out_of_memory
from .parser import parse_arguments
from .run import Run, download


def run_command(argv: list[str] | None, models: Models | None) -> int:
    """See cli.main."""
    if hasattr(sys.stdout, "reconfigure"):  # not in notebooks
        sys.stdout.reconfigure(errors="backslashreplace")  # names that the terminal's encoding lacks
    try:
        with on_signals(stop):
            args = parse_arguments(argv)
            status = download(args) if args.download else Run(args, models).all()
    except BrokenPipeError:  # the reader of what --download lists has gone
        status = 128 + CLOSED_PIPE
    except (ValueError, OSError) as error:  # MediaError, WeightsError and other usage or input errors
        status = failed(with_flag(error))
    except KeyboardInterrupt as stopped:
        status = 128 + getattr(stopped, "number", signal.SIGINT)
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        status = failed(TOO_LARGE)
    finally:
        can_write = flush_output()
    return status if can_write else 128 + CLOSED_PIPE


def flush_output() -> bool:
    """Flush standard output now: where it can't be written, Python would fail again at its end. False if its reader
    has gone."""
    try:
        sys.stdout.flush()
    except OSError as error:
        leads_nowhere(sys.stdout)
        return not isinstance(error, BrokenPipeError)
    return True
