"""Checkpoints against a small server of our own: whatever goes wrong, no file is ever half there or wrong."""

import errno
import hashlib
import os
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
from helpers.checkpoint_server import CONTENT, SHA256, Handler

from minisam_glue import weights
from minisam_glue.weights import CHECKPOINTS, WeightsError, cache, transfer


def assert_whole(path: Path):
    assert path.read_bytes() == CONTENT
    assert sorted(f.name for f in path.parent.iterdir()) == [".tiny.pt.lock", "tiny.pt"]


def assert_refused(folder: Path, *words: str) -> str:
    with pytest.raises(WeightsError) as caught:
        weights.fetch("tiny", folder)
    message = str(caught.value)
    assert "\n" not in message and not (folder / "tiny.pt").exists()
    for word in words:
        assert word in message
    return message


def test_a_file_is_downloaded_once_and_then_found(server, publish, tmp_path):
    publish("/ranges")
    seen = []
    assert weights.find("tiny", tmp_path) is None
    path = weights.fetch("tiny", tmp_path, lambda *step: seen.append(step))
    assert_whole(path)
    assert seen[0] == ("tiny", 0, len(CONTENT)) and seen[-1] == ("tiny", len(CONTENT), len(CONTENT))
    assert weights.fetch("tiny", tmp_path) == weights.find("tiny", tmp_path) == path
    assert len(server.asked) == 1


@pytest.mark.parametrize("size", [len(CONTENT), None])
@pytest.mark.parametrize("sha256", [SHA256, SHA256[:8]])
def test_a_partial_download_goes_on_where_it_stopped(server, publish, tmp_path, size, sha256):
    publish("/ranges", size=size, sha256=sha256)
    (tmp_path / "tiny.pt.part").write_bytes(CONTENT[:4000])
    assert_whole(weights.fetch("tiny", tmp_path))
    assert server.asked == [("/ranges", "bytes=4000-")]


def test_a_server_without_ranges_sends_the_file_anew(publish, tmp_path):
    publish("/whole")
    (tmp_path / "tiny.pt.part").write_bytes(CONTENT[:4000])
    assert_whole(weights.fetch("tiny", tmp_path))


@pytest.mark.parametrize("size", [len(CONTENT), None])
@pytest.mark.parametrize("part", [CONTENT, CONTENT + b"more", b"x" * 4000, b"x" * len(CONTENT)])
def test_a_part_that_is_complete_or_too_long_or_wrong_is_mended(publish, tmp_path, part, size):
    publish("/ranges", size=size)
    (tmp_path / "tiny.pt.part").write_bytes(part)
    assert_whole(weights.fetch("tiny", tmp_path))


def test_without_a_known_hash_no_old_part_is_trusted(server, publish, tmp_path):
    publish("/ranges", sha256=None)
    (tmp_path / "tiny.pt.part").write_bytes(b"x" * 4000)
    assert_whole(weights.fetch("tiny", tmp_path))
    assert server.asked == [("/ranges", None)]


def test_a_dropped_connection_is_taken_up_again(server, publish, tmp_path):
    publish("/drop")
    assert_whole(weights.fetch("tiny", tmp_path))
    assert [asked for _, asked in server.asked] == [None, "bytes=3000-", "bytes=6000-", "bytes=9000-"]


def test_a_server_that_always_drops_at_one_place_is_given_up(publish, tmp_path, monkeypatch):
    monkeypatch.setattr(transfer, "ATTEMPTS", 2)
    monkeypatch.setattr(
        Handler,
        "do_GET",
        lambda self: (
            self.send_response(200),
            self.send_header("Content-Length", "10240"),
            self.end_headers(),
            self.wfile.write(CONTENT[:3000]),
        ),
    )
    publish("/anything")
    assert_refused(tmp_path, "dropped", "after 3000 of 10240")


def test_a_wrong_hash_is_refused_and_named(publish, tmp_path):
    (url,) = publish("/other")
    assert_refused(
        tmp_path,
        "tiny.pt",
        url,
        str(len(CONTENT)),
        SHA256,
        str(tmp_path),
        "--weights demo",
        hashlib.sha256(CONTENT[::-1]).hexdigest(),
    )
    assert not (tmp_path / "tiny.pt.part").exists()


def test_a_wrong_size_is_refused_before_it_is_downloaded(server, publish, tmp_path):
    publish("/short")
    assert_refused(tmp_path, "offers 100 bytes instead of 10240")
    assert len(server.asked) == 1 and not (tmp_path / "tiny.pt.part").exists()


@pytest.mark.parametrize("first", ["/missing", "/other", "/short"])
def test_a_mirror_is_tried_when_the_first_url_fails(server, publish, tmp_path, first):
    publish(first, "/ranges")
    assert_whole(weights.fetch("tiny", tmp_path))
    assert [path for path, _ in server.asked] == [first, "/ranges"]


def test_when_all_urls_fail_the_message_says_how_to_go_on(publish, tmp_path, monkeypatch):
    first, second = publish("/missing", "/missing2")
    monkeypatch.setattr(Handler, "do_GET", lambda self: self.send_error(404))
    assert_refused(
        tmp_path,
        f"{first}: HTTP 404",
        f"{second}: HTTP 404",
        "tiny.pt",
        SHA256,
        str(len(CONTENT)),
        str(tmp_path),
        "--weights DIR",
        "--weights demo",
    )


def test_no_network_is_one_clear_line(publish, server, tmp_path):
    server.shutdown()
    server.server_close()
    (url,) = publish("/ranges")
    assert_refused(tmp_path, url, "refused", "--weights demo")


def test_two_processes_share_one_download(server, publish, tmp_path):
    publish("/ranges")
    program = (
        "import sys; from minisam_glue import weights; from minisam_glue.weights import CHECKPOINTS, Checkpoint\n"
        f"urls, sha256 = {CHECKPOINTS['tiny'].urls!r}, {SHA256!r}\n"
        "CHECKPOINTS['tiny'] = Checkpoint('sam 2', 'tiny.pt', urls, 10240, sha256, 'MIT')\n"
        "print(weights.fetch('tiny', sys.argv[1]))"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    root = Path(__file__).parent.parent
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root) for _ in range(2)]
    assert [process.communicate()[0].strip() for process in both] == [str(tmp_path / "tiny.pt")] * 2
    assert_whole(tmp_path / "tiny.pt")
    assert len(server.asked) == 1


def test_the_lock_keeps_a_second_download_waiting(server, publish, tmp_path):
    publish("/ranges")
    thread = threading.Thread(target=weights.download, args=("tiny", tmp_path))
    with cache._locked(tmp_path / ".tiny.pt.lock"):
        thread.start()
        thread.join(0.2)
        assert thread.is_alive() and not server.asked
    thread.join()
    assert_whole(tmp_path / "tiny.pt")


@pytest.mark.parametrize("code", ["ENOLCK", "ENOSYS", "EOPNOTSUPP"])
def test_where_a_file_system_has_no_locks_a_file_is_downloaded_without(code, publish, tmp_path, monkeypatch):
    fcntl = pytest.importorskip("fcntl")

    def refused(*_):
        raise OSError(getattr(errno, code), os.strerror(getattr(errno, code)))

    monkeypatch.setattr(fcntl, "flock", refused)
    publish("/ranges")
    weights.fetch("tiny", tmp_path)
    assert_whole(tmp_path / "tiny.pt")


def test_a_folder_that_takes_no_files_is_named(server, publish, tmp_path):
    publish("/ranges")
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(WeightsError, match="can't take tiny.pt.*MINISAM_HOME.*--weights demo"):
        weights.download("tiny", tmp_path / "file" / "folder")
    with pytest.raises(WeightsError, match="no folder .*nowhere"):
        weights.fetch("tiny", tmp_path / "nowhere")
    assert not server.asked


@pytest.mark.parametrize("code", [errno.EACCES, errno.ENOSPC])
def test_a_folder_that_refuses_the_bytes_is_named(publish, tmp_path, monkeypatch, code):
    def refuse(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(transfer, "_append", refuse)
    publish("/ranges", "/whole")
    assert_refused(tmp_path, f"{tmp_path} can't take tiny.pt", os.strerror(code), "--weights demo")


def test_a_full_disk_is_named(publish, tmp_path, monkeypatch):
    publish("/ranges")
    usage = type("usage", (), {"free": 100})
    monkeypatch.setattr(transfer.shutil, "disk_usage", lambda _: usage)
    assert_refused(tmp_path, "no room", "MINISAM_HOME")


def test_a_file_of_the_wrong_size_at_hand_is_refused(publish, tmp_path):
    publish("/ranges")
    (tmp_path / "tiny.pt").write_bytes(b"half")
    with pytest.raises(WeightsError, match="has 4 bytes instead of 10240: delete it"):
        weights.fetch("tiny", tmp_path)


def test_the_cache_is_where_the_user_says(publish, tmp_path, monkeypatch):
    monkeypatch.setenv("MINISAM_HOME", str(tmp_path / "home"))
    publish("/ranges")
    assert weights.fetch("tiny") == tmp_path / "home" / "tiny.pt"
    monkeypatch.delenv("MINISAM_HOME")
    assert weights.cache_dir().name == "minisam_glue"


def test_the_table_is_well_formed():
    files = [checkpoint.file for checkpoint in CHECKPOINTS.values()]
    assert len(set(files)) == len(files)
    assert {"swin-t", "swin-b", "sam2.1_hiera_large", "bert-vocab"} <= set(CHECKPOINTS)
    for name, checkpoint in CHECKPOINTS.items():
        assert checkpoint.urls and all(url.startswith("https://") for url in checkpoint.urls)
        assert len(checkpoint.sha256) in (8, 64) and int(checkpoint.sha256, 16)
        assert checkpoint.licence and ("RESTRICTED" in weights.describe(name)) == checkpoint.restricted
    assert {name for name, entry in CHECKPOINTS.items() if entry.restricted} == {
        "clipseg",
        "vit_b_16_swag",
        "vit_b_16_lc_swag",
    }
    with pytest.raises(WeightsError, match="'swin'.*swin-t"):
        weights.find("swin")


@pytest.mark.parametrize("number", [errno.ENETDOWN, errno.EHOSTUNREACH])
def test_a_network_that_goes_away_is_no_full_disk(number):
    def read1(_: int) -> bytes:
        raise OSError(number, os.strerror(number))

    with pytest.raises(ConnectionError, match=os.strerror(number)):
        transfer._arrived(SimpleNamespace(read1=read1))
