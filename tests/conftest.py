"""Fixtures that more than one test file uses."""

import os
import shutil
import signal
import subprocess
import threading
from http.server import ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from helpers.checkpoint_server import CONTENT, SHA256, Handler

from minisam_glue.weights import CHECKPOINTS, Checkpoint
from minivit import report

# Workers of pytest-xdist share the cores: one thread each, and one for the processes that tests start.
if os.environ.get("PYTEST_XDIST_WORKER"):
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"


# In a background job of a script, or under nohup, signals are ignored, and the programs under test leave those alone.
for name, default in (("SIGINT", signal.default_int_handler), ("SIGHUP", signal.SIG_DFL), ("SIGTERM", signal.SIG_DFL)):
    if hasattr(signal, name) and signal.getsignal(getattr(signal, name)) is signal.SIG_IGN:
        signal.signal(getattr(signal, name), default)


SLOWEST_FILES = ("test_demo_weights.py", "test_demo_end_to_end.py", "test_package.py", "test_other_devices.py")


def pytest_collection_modifyitems(items):
    """The slowest files come first: a process that began one last would keep the others waiting."""
    items.sort(key=lambda item: item.path.name not in SLOWEST_FILES)


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    """No test reads or fills the cache of images of whoever runs them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINIVIT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session", autouse=True)
def coarse_pictures():
    """Reports are drawn in half the time; programs that tests start draw them as users get them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "DPI", 30)
        yield


@pytest.fixture
def server():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.asked = []
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def publish(server, monkeypatch):
    """publish("/whole", "/drop", size=..., sha256=...) puts a checkpoint called "tiny" into the table."""

    def publish(*paths, size=len(CONTENT), sha256=SHA256):
        urls = tuple(f"http://127.0.0.1:{server.server_port}{path}" for path in paths)
        monkeypatch.setitem(CHECKPOINTS, "tiny", Checkpoint("sam 2", "tiny.pt", urls, size, sha256, "MIT"))
        return urls

    return publish


@pytest.fixture
def one_thread():
    """One thread: on a busy machine a library may use fewer threads than it has, and sum in another order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def disk(tmp_path):
    """disk(kib): a folder that is a disk of its own, of so many KiB. Only an administrator of Linux may make one."""
    folder, undo = tmp_path / "disk", []
    folder.mkdir()

    def mount(size: int) -> Path:
        for administrator in ([], ["sudo", "-n"]):  # -n: without asking for a password
            words = [*administrator, "mount", "-t", "tmpfs", "-o", f"size={size}k", "tmpfs", str(folder)]
            if shutil.which(words[0]) and not subprocess.run(words, capture_output=True).returncode:
                undo.append([*administrator, "umount", str(folder)])
                return folder
        pytest.skip("no small disk can be made here")

    yield mount
    for words in undo:
        subprocess.run(words, check=True)
