"""mypy over user_script.py, with both packages as pip installs them: it finds their types only through py.typed.

python tests/typing/check.py      # needs the extra `lint`; part of `make lint`
"""

import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from helpers.installed import build_wheel, new_environment


def main() -> int:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        commands = new_environment(folder / "env", build_wheel(folder / "wheel"))
        (folder / "user").mkdir()  # a folder without the sources: mypy would take them from where it runs
        script = folder / "user" / "user_script.py"
        script.write_text((HERE / "user_script.py").read_text(encoding="utf-8"), encoding="utf-8")
        words = ["--strict", "--cache-dir", str(folder / "cache"), "--python-executable", str(commands / "python")]
        return subprocess.run([sys.executable, "-m", "mypy", *words, script.name], cwd=script.parent).returncode


if __name__ == "__main__":
    sys.exit(main())
