"""Text from elsewhere, such as names of files and classes, as a terminal or a report may show it."""

import errno
import logging
import re
import shlex
import sys
import unicodedata
from pathlib import Path

from minivit.process import lead_nowhere

MARKUP = re.compile(r"([\\`*_{}\[\]<>|&~$])")


def printable(text: str) -> str:
    """The text with whatever is no letter or sign escaped: control characters must not steer a terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def one_line(error: Exception, most: int | None = None) -> str:
    """The message of an error on one line of at most `most` letters, or the name of its type if it has none.

    Of an error of the system the file and what is wrong, and what helps against a full disk.
    """
    message = str(error)
    if isinstance(error, OSError) and error.strerror:
        message = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
        message += ": make room, or choose another place" if error.errno == errno.ENOSPC else ""
    return " ".join(message.split())[:most] or type(error).__name__


def markdown(text: str) -> str:
    """The text as Markdown that shows just these letters (CommonMark 0.31, section 2.4): no tag, picture or column."""
    return MARKUP.sub(r"\\\1", printable(text))


def csv_cell(text: str) -> str:
    """The text as a cell of a CSV file: one line, and with a ' before what a spreadsheet would run as a formula."""
    text = printable(text)
    return f"'{text}" if text[:1] in tuple("=+-@") else text


def say(line: str) -> None:
    """Print one line."""
    print(printable(line), flush=True)


def complain(line: str) -> None:
    """Print one line on standard error. It is lost if the reader has gone: that is no reason to stop."""
    try:
        print(printable(line), file=sys.stderr, flush=True)
    except BrokenPipeError:
        lead_nowhere(sys.stderr)


def count(number: int, noun: str) -> str:
    """A number and its noun: "1 image", "2 images"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def composed(name: str) -> str:
    """A name with letters and accents in one (NFC): file systems of macOS take them apart, others leave them so."""
    return unicodedata.normalize("NFC", name)


def shell_word(path: str | Path) -> str:
    """A path as one types it in a shell: for hints."""
    path = str(path)
    if sys.platform == "win32":
        return f'"{path}"' if " " in path else path
    return shlex.quote(path)


def some_of(names: list[str]) -> str:
    """The first five of many names, for a message."""
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def name_classes(classes: list[str]) -> str:
    """The number of classes and the first three of them, for a message."""
    return f"{len(classes)} classes ({', '.join(classes[:3])}{', ...' if len(classes) > 3 else ''})"


class LogLines(logging.Handler):
    """Prints warnings of this package as lines on standard error."""

    def emit(self, record: logging.LogRecord) -> None:
        complain(f"{record.levelname.lower()}: {record.getMessage()}")
