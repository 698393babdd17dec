"""A small server of checkpoints with the habits of servers, good and bad; its fixtures are in conftest.py."""

import hashlib
from http.server import BaseHTTPRequestHandler

CONTENT = bytes(range(256)) * 40
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Handler(BaseHTTPRequestHandler):
    """/whole knows no ranges; /drop hangs up after 3,000 bytes; /other is as long but different; /short is shorter."""

    def do_GET(self):
        self.server.asked.append((self.path, self.headers.get("Range")))
        content = {"/other": CONTENT[::-1], "/short": CONTENT[:100]}.get(self.path, CONTENT)
        if self.path == "/missing":
            self.send_error(404)
            return
        start = 0
        if self.headers.get("Range") and self.path != "/whole":
            start = int(self.headers["Range"].removeprefix("bytes=").removesuffix("-"))
            if start >= len(content):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(content)}")
                self.end_headers()
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        self.wfile.write(content[start : start + 3000] if self.path == "/drop" else content[start:])

    def log_message(self, *_):
        pass
