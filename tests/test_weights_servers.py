"""Servers that misbehave: a download ends soon, whole and right, or with one line and no file."""

import contextlib
import os
import socket
import socketserver
import struct
import threading
import time
from collections.abc import Callable

import pytest
from helpers.checkpoint_server import CONTENT, SHA256

from minisam_glue import weights
from minisam_glue.weights import CHECKPOINTS, Checkpoint, WeightsError, transfer

SIZE = len(CONTENT)
Answer = Callable[[socket.socket, int], None]  # socket, first byte asked for


def head(status: str = "200 OK", **headers: object) -> bytes:
    lines = [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([f"HTTP/1.1 {status}", *lines, "", ""]).encode("latin-1")


def say(*parts: bytes) -> Answer:
    return lambda sock, start: sock.sendall(b"".join(parts))


def reset(*parts: bytes) -> Answer:
    def answer(sock, start):
        sock.sendall(b"".join(parts))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    return answer


def trickle(first: bytes, drop: bytes, pause: float) -> Answer:
    """Send `first`, then `drop` again and again: each comes in time, all of them never end."""

    def answer(sock, start):
        sock.sendall(first)
        while True:
            sock.sendall(drop)
            time.sleep(pause)

    return answer


def good(sock: socket.socket, start: int) -> None:
    status, extra = (
        ("206 Partial Content", {"Content_Range": f"bytes {start}-{SIZE - 1}/{SIZE}"}) if start else ("200 OK", {})
    )
    sock.sendall(head(status, Content_Length=SIZE - start, **extra) + CONTENT[start:])


def redirect(to: str, code: int = 302) -> Answer:
    return say(head(f"{code} Found", Location=to, Content_Length=0))


def chunked(*chunks: bytes, end: bytes = b"0\r\n\r\n") -> bytes:
    body = b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks)
    return head(Transfer_Encoding="chunked") + body + end


STATUSES = (
    201,
    204,
    205,
    300,
    304,
    305,
    400,
    401,
    402,
    403,
    404,
    405,
    407,
    408,
    410,
    418,
    425,
    429,
    451,
    500,
    501,
    502,
)
LENGTHS = ("-1", "abc", "1e4", "0x10", "10240, 10240", "99999", "1" + "0" * 30, "\u00b2", "", "5")
TARGETS = (
    *("ftp://127.0.0.1/x", "file:///etc/passwd", "data:,x", "javascript:1", "gopher://x", "http://[", "http://:0/"),
    *("http://a b/", "http://127.0.0.1:99999/", "http://nowhere.invalid/", "//", "HTTP://127.0.0.1:1/"),
)
MISBEHAVIOURS: dict[str, Answer] = {
    **{f"status {code}": say(head(f"{code} Whatever", Content_Length=0)) for code in STATUSES},
    **{f"length {length!r}": say(head(Content_Length=length), CONTENT[::-1]) for length in LENGTHS},
    **{f"redirect to {target}": redirect(target) for target in TARGETS},
    "a redirect without a target": say(head("302 Found", Content_Length=0)),
    "a redirect to itself": redirect("/bad"),
    "a permanent redirect to itself": redirect("/bad", 308),
    "no answer at all": say(),
    "a reset at once": reset(),
    "a reset in the headers": reset(b"HTTP/1.1 200 OK\r\nConte"),
    "a reset in the body": reset(head(Content_Length=SIZE), CONTENT[::-1][:5000]),
    "an end in the body": say(head(Content_Length=SIZE), CONTENT[::-1][:5000]),
    "a byte at a time": say(head(Content_Length=SIZE), CONTENT[::-1][:1]),
    "an empty body": say(head(Content_Length=SIZE)),
    "another file of this length": say(head(Content_Length=SIZE), CONTENT[::-1]),
    "a page of a hotel": say(head(Content_Length=13, Content_Type="text/html"), b"<html></html>"),
    "a page without its length": say(head(Content_Type="text/html"), b"<html></html>"),
    "more bytes than the file has": say(head(), CONTENT + b"more"),
    "bytes without an end": trickle(head(), CONTENT, 0.0),
    "drops without an end": trickle(head(Content_Length=SIZE), b"x", 0.1),
    "headers without an end": trickle(b"HTTP/1.1 200 OK\r\n", b"X: y\r\n", 0.1),
    "a header without an end": trickle(b"HTTP/1.1 200 OK\r\nX: ", b"y", 0.1),
    "chunks without an end": trickle(head(Transfer_Encoding="chunked"), b"1\r\nx\r\n", 0.1),
    "a wrong chunk": say(chunked(CONTENT[:10], end=b"zz\r\n")),
    "chunks that break off": say(chunked(CONTENT[:10], end=b"ff\r\nx")),
    "other chunks": say(chunked(CONTENT[::-1])),
    "silence": lambda sock, start: time.sleep(3),
    "silence in the body": lambda sock, start: (sock.sendall(head(Content_Length=SIZE) + b"x"), time.sleep(3)),
    "garbage": say(bytes(range(256)) * 4),
    "no status line": say(b"hello\r\n\r\n"),
    "an unknown version": say(b"HTTP/9.9 200 OK\r\n\r\n"),
    "a status that is no number": say(b"HTTP/1.1 OK 200\r\n\r\n"),
    "a thousand headers": say(b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 1000 + b"\r\n"),
    "a header of a megabyte": say(b"HTTP/1.1 200 OK\r\nX: " + b"y" * (1 << 20) + b"\r\n\r\n"),
    "a part that nobody asked for": say(head("206 Partial Content", Content_Range="bytes 5-9/10"), b"12345"),
    "a part without its place": say(head("206 Partial Content", Content_Length=5), b"12345"),
    "nothing to satisfy": say(head("416 Range Not Satisfiable", Content_Range="bytes */0", Content_Length=0)),
    "control characters": say(b"HTTP/1.1 404 \x1b[31mred\x07\r\nContent-Length: 0\r\n\r\n"),
}


class Handler(socketserver.BaseRequestHandler):
    def handle(self):
        request = b""
        while b"\r\n\r\n" not in request:
            data = self.request.recv(65536)
            if not data:
                return
            request += data
        path = request.split()[1].decode()
        self.server.asked.append(path)
        _, _, asked = request.partition(b"Range: bytes=")
        start = int(asked.split(b"-")[0]) if asked else 0
        with contextlib.suppress(OSError):  # the client has gone, as it should
            (self.server.answer if path == "/bad" else good)(self.request, start)


@pytest.fixture
def servers(monkeypatch):
    """servers(answer, size, sha256) puts "tiny" into the table, at /bad with this answer and at /good."""
    monkeypatch.setattr(transfer, "TIMEOUT", 0.4)
    monkeypatch.setattr(transfer, "GRACE", 1.0)
    monkeypatch.setattr(transfer, "LARGEST", 100_000)
    monkeypatch.setattr(transfer, "SLOWEST", 1e9)
    monkeypatch.setattr(transfer, "ATTEMPTS", 3)
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads, server.block_on_close, server.asked = True, False, []
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()

        def publish(answer: Answer, paths: tuple[str, ...], size: int | None, sha256: str | None):
            server.answer = answer
            urls = tuple(f"http://127.0.0.1:{server.server_address[1]}{path}" for path in paths)
            monkeypatch.setitem(CHECKPOINTS, "tiny", Checkpoint("sam 2", "tiny.pt", urls, size, sha256, "MIT"))
            return server

        yield publish
        server.shutdown()


def test_there_are_enough_kinds_of_misbehaviour():
    assert len(MISBEHAVIOURS) >= 60


@pytest.mark.parametrize("name", MISBEHAVIOURS)
def test_a_server_that_misbehaves_is_left_for_the_next_one(name, servers, tmp_path):
    server = servers(MISBEHAVIOURS[name], ("/bad", "/good"), SIZE, SHA256)
    begun = time.monotonic()
    path = weights.fetch("tiny", tmp_path)
    assert path.read_bytes() == CONTENT
    assert sorted(file.name for file in tmp_path.iterdir()) == [".tiny.pt.lock", "tiny.pt"]
    assert server.asked.count("/bad") <= 12 and time.monotonic() - begun < 15  # 10 redirects and a retry, at most


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize(
    "name",
    ["bytes without an end", "drops without an end", "a page of a hotel", "a header without an end", "silence"]
    + ["control characters", "redirect to file:///etc/passwd", "length '-1'"],
)
def test_a_server_that_misbehaves_alone_ends_in_one_line(name, known, servers, tmp_path):
    servers(MISBEHAVIOURS[name], ("/bad",), *((SIZE, SHA256) if known else (None, SHA256[:8])))
    with pytest.raises(WeightsError, match="tiny could not be downloaded") as caught:
        weights.fetch("tiny", tmp_path)
    assert str(caught.value).isprintable() and not (tmp_path / "tiny.pt").exists()


def test_what_came_before_a_reset_is_kept(servers, tmp_path):
    answers = iter([reset(head(Content_Length=SIZE), CONTENT[:7000]), good])
    asked = []

    def answer(sock, start):
        asked.append(start)
        next(answers)(sock, start)
        time.sleep(0.05)

    servers(answer, ("/bad",), SIZE, SHA256)
    assert weights.fetch("tiny", tmp_path).read_bytes() == CONTENT
    assert asked == [0, 7000]


@pytest.mark.parametrize("make", ["link", "pipe", "folder"])
def test_a_part_that_is_no_regular_file_is_refused_and_left_alone(make, servers, tmp_path):
    part, other = tmp_path / "tiny.pt.part", tmp_path / "other"
    other.write_bytes(b"mine")
    {"link": lambda: part.symlink_to(other), "pipe": lambda: os.mkfifo(part), "folder": part.mkdir}[make]()
    servers(good, ("/good",), SIZE, SHA256)
    with pytest.raises(WeightsError, match="tiny.pt.part is no regular file: remove it"):
        weights.fetch("tiny", tmp_path)
    assert other.read_bytes() == b"mine" and os.path.lexists(part)


def test_a_home_of_nobody_is_one_line(monkeypatch):
    monkeypatch.setenv("MINISAM_HOME", "~nosuchuser/weights")
    with pytest.raises(WeightsError, match="MINISAM_HOME is ~nosuchuser/weights: set MINISAM_HOME to a folder"):
        weights.find("swin-t")


def test_waiting_for_another_process_is_said(servers, tmp_path, capsys):
    servers(good, ("/good",), SIZE, SHA256)
    thread = threading.Thread(target=weights.download, args=("tiny", tmp_path, lambda *_: None))
    with weights.cache._locked(tmp_path / ".tiny.pt.lock"):
        thread.start()
        thread.join(0.3)
    thread.join()
    assert "tiny: waiting for another process that downloads it" in capsys.readouterr().err
