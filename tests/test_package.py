"""The packages as pip installs them, used far from the sources."""

import json
import os
import re
import subprocess
from email.parser import Parser
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import pytest
from helpers.installed import ROOT, build_wheel, new_environment
from PIL import Image

import minisam_glue
import minivit


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    return build_wheel(tmp_path_factory.mktemp("wheel") / "build")


@pytest.fixture(scope="module")
def commands(wheel, tmp_path_factory) -> Path:
    """The folder of the commands of an environment that has the wheel."""
    return new_environment(tmp_path_factory.mktemp("environment") / "env", wheel)


def run(command: Path, *words: object, cwd: Path) -> str:
    """What a command prints, started in a folder that has nothing of the sources."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"MINIVIT_CACHE": str(cwd / "cache")}
    done = subprocess.run([command, *map(str, words)], cwd=cwd, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_wheel_has_every_file_of_both_packages_and_nothing_else(wheel):
    expected = {
        path.relative_to(ROOT).as_posix()
        for package in ("minivit", "minisam_glue")
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    with ZipFile(wheel) as file:
        held = {name for name in file.namelist() if ".dist-info/" not in name}
    assert held == expected
    assert {"minivit/py.typed", "minisam_glue/py.typed", "minisam_glue/demo/detector.pt"} <= held


def test_both_packages_and_the_wheel_have_one_version(wheel):
    with ZipFile(wheel) as file:
        (name,) = (name for name in file.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = Parser().parsestr(file.read(name).decode())
    assert minivit.__version__ == minisam_glue.__version__ == metadata["Version"]
    assert metadata["License-Expression"] == "Apache-2.0" and metadata["Requires-Python"] == ">=3.10"


def test_both_imports_find_the_installed_packages_and_the_demo_weights(commands, tmp_path):
    script = """
import minivit, minisam_glue
from minivit import PRESETS, VisionTransformer, ViTConfig
from minisam_glue import frames, load_models, read_image, segment_image, segment_video
load_models("demo")
print(minivit.__file__, minisam_glue.__file__)
"""
    printed = run(commands / "python", "-c", script, cwd=tmp_path)
    assert all(str(commands.parent) in path for path in printed.split())


def test_the_command_minisam_segments_with_the_demo_weights(commands, tmp_path):
    picture = ROOT / "examples" / "hexagons.jpg"
    run(commands / "minisam", picture, "green hexagon.", "--weights", "demo", "--out", "out", "--quiet", cwd=tmp_path)
    result = json.loads((tmp_path / "out" / "hexagons" / "result.json").read_text())
    assert {o["label"] for o in result["objects"]} == {"green hexagon"}


def test_the_command_minivit_trains_and_predicts(commands, tmp_path):
    for split, count in (("train", 12), ("test", 2)):
        for name, grey in (("bright", 200), ("dark", 40)):
            (tmp_path / "images" / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = np.full((16, 16, 3), grey + i, np.uint8)
                Image.fromarray(pixels).save(tmp_path / "images" / split / name / f"{i}.png")
    words = "--data folder --data-root images --preset shapes-demo --dim 16 --depth 1 --heads 2 --image-size 16"
    more = "--device cpu --threads 1 --batch-size 8 --val-split 4 --epochs 1 --out run"
    run(commands / "minivit", *words.split(), *more.split(), cwd=tmp_path)
    printed = run(commands / "minivit", "--predict", "run/best.pt", "images/test/dark/0.png", cwd=tmp_path)
    assert "0.png" in printed and ("dark" in printed or "bright" in printed)


def test_the_oldest_versions_that_are_tested_are_the_lower_bounds():
    pyproject = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    listed = re.search(r"^dependencies.*?^bench", pyproject, re.DOTALL | re.MULTILINE).group()
    bounds = {name: version for name, version in re.findall(r'"([\w-]+)>=([\d.]+)"', listed) if name != "setuptools"}
    tested = dict(re.findall(r"^([\w-]+)==([\d.]+)$", (ROOT / ".ci/lowest.txt").read_text(), re.MULTILINE))
    assert {name: version.removesuffix(".0") for name, version in tested.items()} == bounds


@pytest.mark.parametrize("package, modules", [(minivit, {"ema", "mix", "optim"}), (minisam_glue, {"sam2", "clipseg"})])
def test_dir_lists_public_names_and_modules_alone_and_each_is_there(package, modules):
    listed = dir(package)
    assert {*package.__all__, *modules} <= set(listed)
    assert not {"Any", "TYPE_CHECKING", "import_module", "PLACES"} & set(listed)
    assert all(hasattr(package, name) for name in listed)
