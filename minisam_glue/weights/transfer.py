"""One file over HTTP into a `.part` file: taken up again where it stopped, bounded in bytes and time, checked.

HTTP Range: RFC 9110, section 14. Whatever a server does ends within the deadline, writes no more bytes than the file
can have, and is told in a few words. Left out: credentials, parallel connections.
"""

import contextlib
import hashlib
import http.client
import os
import shutil
import ssl
import stat
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

from ..support.text import printable
from .table import Checkpoint

CHUNK = 1 << 20  # bytes read at a time
TIMEOUT = 30  # seconds without an answer before a connection counts as dropped
ATTEMPTS = 5  # connections to one URL that may drop, each after less than a chunk, before the next URL is tried
GRACE, SLOWEST = 60, 20_000  # seconds, and bytes per second: a URL has GRACE + size / SLOWEST seconds
LARGEST = 4 << 30  # bytes of a file whose size is unknown
RETRIED = {408, 425, 429}  # HTTP statuses below 500 that say: ask again later


class Refused(Exception):
    """A server offers or sends something else than the file, or too slowly; the message says what."""


def get(url: str, part: Path, checkpoint: Checkpoint, progress: Callable[[int, int | None], None]) -> str | None:
    """Complete and check `part` from one URL. None, or a few words that say why that failed.

    progress: called with the bytes so far and the bytes in all. OSError if the disk does not take them.
    """
    try:
        with deadline(GRACE + (checkpoint.bytes or LARGEST) / SLOWEST) as connections:
            failure = _get(url, part, checkpoint, progress, connections)
    except Refused as refused:
        failure = str(refused)
    return failure and printable(failure)  # a server chooses some of the words


def verify(path: Path, checkpoint: Checkpoint) -> str | None:
    """The fault in a file's size or hash, None without one."""
    size = path.stat().st_size
    if checkpoint.bytes not in (None, size):
        return f"it has {size} bytes instead of {checkpoint.bytes}"
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    if not digest.hexdigest().startswith(checkpoint.sha256 or ""):
        return f"its sha256 is {digest.hexdigest()} instead of {checkpoint.sha256}"
    return None


def check_part(part: Path) -> None:
    """Raise FileExistsError unless `part` is a regular file or nothing: a link or a pipe would lead elsewhere."""
    if os.path.lexists(part) and not stat.S_ISREG(os.lstat(part).st_mode):
        raise FileExistsError(f"{part} is no regular file: remove it")


def _get(url: str, part: Path, checkpoint: Checkpoint, progress: Callable, connections: "Connections") -> str | None:
    """Get a file. A connection that drops is taken up again; with less than a chunk it counts as an attempt."""
    failure, attempt = "no answer", 0
    while attempt < ATTEMPTS:
        time.sleep(min(attempt * attempt * 0.1, 2))
        connections.check()
        before = _size(part)
        try:
            _transfer(url, part, checkpoint, progress, connections)
        except urllib.error.HTTPError as error:
            failure = f"HTTP {error.code} {error.reason}"
            if error.code < 500 and error.code not in RETRIED:
                return failure
        except urllib.error.URLError as error:
            connections.check()
            if not isinstance(error.reason, (TimeoutError, ConnectionResetError, ssl.SSLEOFError)):
                return str(error.reason)
            failure = f"the connection dropped ({error.reason})"
        except (http.client.InvalidURL, UnicodeError, ValueError) as error:  # of a redirect, a header
            return f"a malformed answer ({error})"
        except (http.client.HTTPException, TimeoutError, ConnectionError, ssl.SSLError) as error:
            connections.check()
            failure = f"the connection dropped ({error or type(error).__name__})"
        else:
            failure = verify(part, checkpoint)
            if failure is None:
                return None
            part.unlink()
            if not before:  # all of it came from here, so asking again would not help
                return failure
        attempt = 0 if _size(part) - before >= CHUNK else attempt + 1
    return failure


def _size(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


def _transfer(url: str, part: Path, checkpoint: Checkpoint, progress: Callable, connections: "Connections") -> None:
    """One connection: append what is missing of `part`. ConnectionError if it ends early."""
    start = _size(part)
    if start and start == checkpoint.bytes:
        return
    headers = {"User-Agent": "minisam_glue"} | ({"Range": f"bytes={start}-"} if start else {})
    try:
        answer = connections.opener.open(urllib.request.Request(url, headers=headers), timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code != 416 or not start:
            raise
        if error.headers.get("Content-Range") != f"bytes */{start}":
            part.unlink()  # longer than the file itself
            raise ConnectionError("the part at hand was too long") from error
        return  # nothing was missing
    with answer:
        if answer.status != 206 or not answer.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
            start = 0  # the server sends the whole file again
        length = answer.headers.get("Content-Length")
        total = start + int(length) if length else checkpoint.bytes
        if None not in (total, checkpoint.bytes) and total != checkpoint.bytes:
            raise Refused(f"it offers {total} bytes instead of {checkpoint.bytes}")
        most = total or LARGEST
        if not start <= most <= (checkpoint.bytes or LARGEST):
            raise Refused(f"it offers {total} bytes, which is no size of a weights file")
        if total and shutil.disk_usage(part.parent).free < total - start:
            raise OSError(f"there is no room for {(total - start) / 1e6:.0f} MB")
        done = _append(answer, part, start, most, lambda done: progress(done, total))
    connections.check()
    if total not in (None, done):
        raise ConnectionError(f"after {done} of {total} bytes")


def _append(answer: http.client.HTTPResponse, part: Path, start: int, most: int, progress: Callable) -> int:
    """Write what arrives, as it arrives, behind the first `start` bytes of `part`; returns its new length."""
    done = start
    with part.open("ab" if start else "wb") as file:
        progress(done)
        while chunk := _arrived(answer):
            done += len(chunk)
            if done > most:
                raise Refused(f"it sends more than {most} bytes")
            file.write(chunk)
            progress(done)
    return done


def _arrived(answer: http.client.HTTPResponse) -> bytes:
    """The bytes of an answer that have come; ConnectionError if the network fails, which says so in several ways."""
    try:
        return answer.read1(CHUNK)
    except OSError as error:
        if isinstance(error, (ConnectionError, TimeoutError)):
            raise
        raise ConnectionError(str(error)) from error


class Connections:
    """The connections of one transfer, all of which close when its time is over.

    opener: opens http and https URLs, through the proxies that the environment names, and follows redirects to such
    URLs alone.
    """

    def __init__(self, seconds: float):
        self.seconds, self.over, self.sockets = seconds, False, []
        self.opener = urllib.request.OpenerDirector()
        for handler in (
            urllib.request.ProxyHandler(),
            _handler(urllib.request.HTTPHandler, "http_open", http.client.HTTPConnection, self),
            _handler(urllib.request.HTTPSHandler, "https_open", http.client.HTTPSConnection, self),
            urllib.request.UnknownHandler(),
            urllib.request.HTTPDefaultErrorHandler(),
            _HttpRedirects(),
            urllib.request.HTTPErrorProcessor(),
        ):
            self.opener.add_handler(handler)

    def check(self) -> None:
        """Raise Refused if the time is over."""
        if self.over:
            raise Refused(f"too slow: not complete after {self.seconds:.0f} s")

    def close(self) -> None:
        """End what still runs: a thread that waits for a socket gets an error."""
        self.over = True
        for socket in self.sockets:
            with contextlib.suppress(OSError):
                socket.shutdown(2)


@contextlib.contextmanager
def deadline(seconds: float) -> Iterator[Connections]:
    """Connections that end after so many seconds, however many bytes still trickle in."""
    connections = Connections(seconds)
    timer = threading.Timer(seconds, connections.close)
    timer.daemon = True
    timer.start()
    try:
        yield connections
    finally:
        timer.cancel()


class _HttpRedirects(urllib.request.HTTPRedirectHandler):
    """Redirects to http and https alone; the library would follow ftp, too."""

    def redirect_request(self, req, fp, code, msg, headers, newurl):
        if not newurl.lower().startswith(("http://", "https://")):
            raise urllib.error.URLError(f"it redirects to {newurl:.100}, which is neither http nor https")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _handler(base: type, method: str, connection: type, connections: Connections) -> urllib.request.BaseHandler:
    """A handler of urllib whose sockets `connections` knows as soon as they are open."""

    class Connection(connection):
        def connect(self):
            super().connect()
            connections.sockets.append(self.sock)

    def opened(self, request):
        return self.do_open(Connection, request)

    return type(base.__name__, (base,), {method: opened})()
