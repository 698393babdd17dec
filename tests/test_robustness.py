import json
import pickle
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import damage
from helpers.tiny_segment import tiny_models

import segment
from minisam_glue import demo

SECONDS = 60  # of a case, at most: a machine that is busy is slow, but a hang does not end


class Hangs(BaseException):
    pass


def raise_hangs(*_: object) -> None:
    raise Hangs


def problems(status: int, out: Path, error: str, folder: bool) -> list[str]:
    """What a case did that no case may do. In a folder each bad file has its line, and the good ones their results."""
    left = [str(path) for path in out.rglob(".*")] if out.exists() else []
    errors = [line for line in error.splitlines() if line.startswith("error: ")]
    # libtiff, which is C, speaks for itself of damaged TIFF files.
    known = ("error: ", "warning: ", "tempfile.tif: ", "LZWDecode: ")
    others = [line for line in error.splitlines() if not line.startswith(known)]
    found = [f"exit status {status}"] if status not in (0, 2) else []
    found += [f"left {left}"] if left else []
    found += [f"printed {others}"] if others else []
    found += [f"{len(errors)} errors"] if bool(errors) != (status == 2) or len(errors) > 1 and not folder else []
    if status == 2 and out.exists() and not folder:
        found += [f"wrote {path}" for path in out.rglob("*") if path.is_file()]
    for path in out.rglob("result.json") if out.exists() else ():
        json.loads(path.read_text())
    return found


def test_damaged_and_odd_inputs_end_in_a_result_or_one_line(tmp_path, monkeypatch, capfd):
    (tmp_path / "in").mkdir()
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    cases, models, wrong = damage.cases(tmp_path / "in"), tiny_models(), {}
    assert len(cases) >= 400
    previous = signal.signal(signal.SIGALRM, raise_hangs)
    try:
        for number, case in enumerate(cases):
            out = tmp_path / "out" / str(number)
            signal.alarm(SECONDS)
            try:
                status = segment.main([*case.args, "--out", str(out), "--quiet", "--format", "gif"], models)
                found = problems(status, out, capfd.readouterr().err, Path(case.args[0][:200]).is_dir())
                if "_good_" in case.name and status != 0:
                    found.append("a good file is refused")
            except (Exception, Hangs) as error:
                found = [repr(error)]
            signal.alarm(0)
            if found:
                wrong[case.name] = found
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)
    assert wrong == {} and not Path("unpickled").exists()


class Bomb:
    def __reduce__(self):
        return open, (str(Path("exploded").absolute()), "w")


@pytest.mark.parametrize("content", ["bomb", "text", "empty", "list", "foreign"])
def test_a_weights_file_that_is_none_is_one_line_and_runs_nothing(content, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in (demo.DETECTOR, demo.SEGMENTER):
        path = tmp_path / name
        if content == "bomb":
            path.write_bytes(pickle.dumps({"model": Bomb()}))
        elif content in ("text", "empty"):
            path.write_text("words" if content == "text" else "")
        else:
            torch.save([1, 2] if content == "list" else {"model": {"weight": torch.zeros(2)}}, path)
    damage.frame().save("one.png")
    assert segment.main(["one.png", "car.", "--weights", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and len(error.splitlines()) == 1 and demo.DETECTOR in error
    assert "train_detector makes it" in error and "download" not in error
    assert not Path("exploded").exists()


def test_weights_that_can_not_be_had_are_named_with_the_way_out(tmp_path):
    damage.frame().save(tmp_path / "one.png")
    script = Path(segment.__file__)
    done = subprocess.run(
        [sys.executable, str(script), "one.png", "car.", "--quiet"],
        cwd=tmp_path,
        text=True,
        capture_output=True,
        env={"MINISAM_HOME": str(tmp_path / "home"), "PATH": "", "https_proxy": "http://127.0.0.1:9"},
    )
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    for part in ("groundingdino_swint_ogc.pth", "693997677", "3b3ca2563c77", "https://", "--weights demo", "home"):
        assert part in done.stderr
