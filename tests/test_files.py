"""minivit/files.py and minisam_glue/support/files.py: names, links, and what a power cut leaves."""

import os
from pathlib import Path

import pytest

from minisam_glue.support.files import whole_file
from minivit.files import write_atomically


def with_minivit(path: Path, text: str) -> None:
    write_atomically(path, lambda temporary: temporary.write_text(text))


def with_minisam(path: Path, text: str) -> None:
    with whole_file(path) as temporary:
        temporary.write_text(text)


@pytest.mark.parametrize("write", [with_minivit, with_minisam])
@pytest.mark.parametrize("name", ["n" * 255, "\u00fc" * 127], ids=["letters", "umlauts"])
def test_a_name_may_be_as_long_as_a_file_system_takes_it(write, name, tmp_path):
    write(tmp_path / name, "old"), write(tmp_path / name, "new")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["new"]


def test_a_symbolic_link_stays_and_the_file_that_it_names_is_replaced(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "last.pt").symlink_to(Path("disk") / "last.pt")  # dangling at first
    for text in ("old", "new"):
        with_minivit(tmp_path / "last.pt", text)
        assert (tmp_path / "last.pt").is_symlink() and (tmp_path / "disk" / "last.pt").read_text() == text
    assert [path.name for path in (tmp_path / "disk").iterdir()] == ["last.pt"]


def test_the_content_is_on_the_disk_before_it_gets_its_name(tmp_path, monkeypatch):
    done, sync, replace = [], os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda number: done.append(os.fstat(number).st_size) or sync(number))
    monkeypatch.setattr(os, "replace", lambda *paths: done.append(paths[1].name) or replace(*paths))
    with_minivit(tmp_path / "last.pt", "whole")
    assert done == [5, "last.pt"]
