"""The pages of several results as one index: a thumbnail, the source's name, what was found, a link.

It holds no script. Thumbnails are files in the folders of the results, so that the index of many stays small.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from urllib.parse import quote

from ..support.files import whole_file
from ..support.text import one_line

NAME = "index.html"
MARK = '<meta name="generator" content="minisam">'

PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
{mark}
<meta http-equiv="Content-Security-Policy" content="script-src 'none'">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; font: 15px/1.4 system-ui, sans-serif; }}
h1 {{ font-size: 1.1rem; }}
ul {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(11rem, 1fr)); gap: 1rem; padding: 0; }}
li {{ list-style: none; overflow-wrap: anywhere; }}
img {{ display: block; width: 100%; height: 9rem; object-fit: contain; }}
</style>
</head>
<body>
<h1>{title}</h1>
<ul>
{rows}
</ul>
</body>
</html>
"""


@dataclass(frozen=True)
class Entry:
    """One result: its source, the name of its folder, and what was found, such as "2 car"."""

    source: str
    folder: str
    found: str


def check_index(folder: Path) -> None:
    """ValueError if an index.html there is not one of this program, which may be replaced."""
    path = folder / NAME
    if path.is_symlink() or (path.exists() and not (path.is_file() and MARK.encode() in path.read_bytes()[:1000])):
        raise ValueError(f"{path} was not made by this program: move it away, or choose another --out")


def is_behind(folder: Path, name: str, since: int) -> bool:
    """Whether an index.html of ours in a folder lists the result of this name as it was before `since`, nanoseconds of
    file times."""
    path = folder / NAME
    try:
        text = path.read_bytes() if path.is_file() and path.stat().st_mtime_ns < since else b""
    except OSError:
        return False
    return MARK.encode() in text[:1000] and f'href="{quote(os.fsencode(name))}/page.html"'.encode() in text


def write_index(folder: Path, entries: Sequence[Entry]) -> None:
    """Write index.html into the folder that holds those of the entries. OSError if that can't be done."""
    title = f"{folder.resolve().name}: {len(entries)} result{'s' * (len(entries) != 1)}"
    page = PAGE.format(mark=MARK, title=escape(one_line(title)), rows="\n".join(map(_row, entries)))
    with whole_file(folder / NAME) as temporary:
        temporary.write_bytes(page.encode())


def _row(entry: Entry) -> str:
    place = quote(os.fsencode(entry.folder))
    return (
        f'<li><a href="{place}/page.html"><img alt="" loading="lazy" src="{place}/thumbnail.jpg">'
        f"<bdi>{escape(one_line(entry.source))}</bdi></a> <bdi>{escape(one_line(entry.found))}</bdi></li>"
    )
