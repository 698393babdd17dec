"""minivit/process.py: the memory of a process that trains."""

import ctypes
import platform
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from minivit import process

ROOT = Path(__file__).resolve().parent.parent
FAULTS = """
import resource
from minivit.process import keep_freed_memory

def faults():  # pages that the kernel hands out while four blocks of 64 MiB come and go
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        block = bytearray(b"1") * (64 * 2**20)
        del block
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults()
as_it_was = faults()
keep_freed_memory()
faults()
print(as_it_was, faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another library's memory")
def test_freed_memory_is_used_again_without_asking_the_system():
    out = subprocess.run([sys.executable, "-c", FAULTS], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    before, after = map(int, out.split())
    assert before > 100  # pages of 4 KiB are 65,536, those of 2 MiB 128
    assert after < before / 20


@pytest.mark.parametrize("most, given", [(2**30, [(-3, 2**30)]), (2**25, [(-3, 2**30), (-3, 2**25)])])
def test_a_glibc_that_refuses_large_blocks_keeps_those_that_it_can(monkeypatch, most, given):
    calls = []

    def mallopt(name: int, value: int) -> int:
        calls.append((name, value))
        return int(name != -3 or value <= most)

    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(ctypes, "CDLL", lambda name: SimpleNamespace(mallopt=mallopt))
    process.keep_freed_memory()
    assert calls == [*given, (-1, 2**31 - 1)]
