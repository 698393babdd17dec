"""How the tests themselves are laid out."""

import ast
import re
from pathlib import Path

TESTS = Path(__file__).parent


def imported_test_files(source: str) -> list[str]:
    """The modules test_... that Python source imports, also in code that it holds as a string for another process."""
    found = []
    for node in ast.walk(ast.parse(source)):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or "", *(alias.name for alias in node.names)]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            names = re.findall(r"^\s*(?:from|import)\s+([\w.]+)", node.value, re.MULTILINE)
        found += [name for name in names if name.rsplit(".", 1)[-1].startswith("test_")]
    return found


def test_no_test_file_imports_another_one():
    importing = {
        str(path.relative_to(TESTS)): found
        for path in sorted(TESTS.rglob("*.py"))
        if path != Path(__file__) and (found := imported_test_files(path.read_text(encoding="utf-8")))
    }
    assert importing == {}, "move what both need to tests/helpers/ or conftest.py"


def test_an_import_of_a_test_file_is_noticed_in_every_form():
    for line in (
        "from test_media import clip",
        "import test_media",
        "from tests import test_media",
        "from tests.test_media import clip",
        "def late():\n    import test_media as m",
        'CODE = """\nimport torch\nfrom test_media import clip\n"""',
    ):
        assert imported_test_files(line), line
    assert not imported_test_files("import torch\nfrom helpers.squares import picture\nimport parity")
