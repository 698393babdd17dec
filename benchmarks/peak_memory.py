"""Peak memory of a process, which several benchmarks print."""

import re
import sys
from pathlib import Path


def peak_mib() -> float:
    """Largest resident memory of this process so far, in MiB.

    On Linux from its status: what `resource` says there begins with the memory of the process that started this one.
    """
    status = Path("/proc/self/status")
    if status.exists():
        return int(re.search(r"VmHWM:\s+(\d+)", status.read_text())[1]) / 1024
    import resource  # not on Windows

    return rusage_mib(resource.getrusage(resource.RUSAGE_SELF))


def forget_peak() -> None:
    """Let peak_mib begin anew, on Linux: what was loaded before is not what is measured."""
    reset = Path("/proc/self/clear_refs")
    if reset.exists():
        reset.write_text("5")


def rusage_mib(used) -> float:
    """Largest resident memory in MiB by a struct of resource or of os.wait4; macOS counts in bytes, others in KiB."""
    return used.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
