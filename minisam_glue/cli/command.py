"""One command from its first word to its exit status: whatever a user can mend becomes one line on standard error."""

import os
import sys

from ..models import Models
from . import INTERRUPTED
from .arguments import with_flag
from .console import TOO_LARGE, failed, out_of_memory
from .parser import parse_arguments
from .run import Run, download


def run_command(argv: list[str] | None, models: Models | None) -> int:
    """See cli.main."""
    if hasattr(sys.stdout, "reconfigure"):  # not in notebooks
        sys.stdout.reconfigure(errors="backslashreplace")  # names that the terminal's encoding lacks
    try:
        args = parse_arguments(argv)
        return download(args) if args.download else Run(args, models).all()
    except BrokenPipeError:  # the reader of --json - has gone
        return 0
    except (ValueError, OSError) as error:  # MediaError, WeightsError and other usage or input errors
        return failed(with_flag(error))
    except KeyboardInterrupt:
        return INTERRUPTED
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        return failed(TOO_LARGE)
    finally:
        flush_output()


def flush_output() -> None:
    """Flush standard output now: where it can't be written, Python would fail again at its end."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
