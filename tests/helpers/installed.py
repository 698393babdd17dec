"""The project as pip installs it: a wheel, in a new environment that shares torch and the rest with this one."""

import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
WANTED = ("pyproject.toml", "README.md", "LICENSE", "NOTICE", "minivit", "minisam_glue")
SHARED = ("torch", "torchvision", "numpy", "PIL")


def build_wheel(folder: Path) -> Path:
    """Build the wheel from a copy of the sources, so that no older build/ can add to it. No download."""
    sources = folder / "sources"
    sources.mkdir(parents=True)
    for name in WANTED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, sources / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, sources)
    pip(sys.executable, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(sources))
    (wheel,) = folder.glob("*.whl")
    return wheel


def new_environment(folder: Path, wheel: Path) -> Path:
    """Install the wheel in a new environment `folder` and return the folder of its commands."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    commands = folder / ("Scripts" if os.name == "nt" else "bin")
    python = str(commands / "python")
    asked = "import sysconfig; print(sysconfig.get_path('purelib'))"
    packages = subprocess.run([python, "-c", asked], check=True, capture_output=True, text=True).stdout.strip()
    # The folders of a .pth file come after the environment's own, and .pth files in them are not read:
    # an editable install of this project beside torch stays out of sight.
    shared = dict.fromkeys(str(Path(find_spec(name).origin).parents[1]) for name in SHARED)
    Path(packages, "shared.pth").write_text("\n".join(shared) + "\n")
    pip(sys.executable, "--python", python, "install", "--no-deps", "--no-index", str(wheel))
    return commands


def pip(python: str, *words: str) -> None:
    """Run pip; on failure AssertionError with what it printed."""
    options = ("--quiet", "--disable-pip-version-check")
    done = subprocess.run([python, "-m", "pip", *options, *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
