"""How both commands end before their work is done: signals at any time, readers that go, memory that runs out."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
from helpers.commands import command
from helpers.no_memory import NO_MEMORY
from helpers.squares import picture, save, save_film

import segment
import train_cifar
from minisam_glue.cli import outputs, video
from minisam_glue.cli import run as segment_run
from minisam_glue.cli.job import Job
from minisam_glue.support import processes
from minivit import cli, process, run
from minivit.train import Trainer

ROOT = Path(__file__).parents[1]
SCRIPTS = {
    "segment.py": ["segment.py"],
    "python -m minisam_glue": ["-m", "minisam_glue"],
    "minisam": ["-c", "import sys; from minisam_glue.cli import main; sys.exit(main())"],  # as pip writes it
    "datasets": ["-m", "minisam_glue.datasets"],
    "train_cifar.py": ["train_cifar.py"],
    "minivit": ["-c", "import sys; from minivit.__main__ import main; sys.exit(main())"],
    "python -m minivit": ["-m", "minivit"],
}
SIGNALS = [pytest.param(number, id=signal.Signals(number).name) for number in processes.SIGNALS]
posix = pytest.mark.skipif(os.name != "posix", reason="signals of other processes and shells are another thing here")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MINIVIT_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def training(tmp_path) -> list[str]:
    """A training on few pictures, of many epochs that take a moment."""
    for split in ("train", "test"):
        for name, left in (("one", 2), ("two", 30)):
            (tmp_path / "images" / split / name).mkdir(parents=True)
            for i in range(4):
                save(picture(left, seed=i), tmp_path / "images" / split / name / f"{i}.png")
    words = "--data folder --preset shapes-demo --image-size 16 --dim 16 --depth 1 --heads 2 --device cpu --amp off"
    words += " --val-split 0 --batch-size 4 --epochs 50"
    return [*words.split(), "--data-root", str(tmp_path / "images"), "--out", str(tmp_path / "run")]


@pytest.fixture
def gone():
    """A standard output whose reader has gone."""
    read, write = os.pipe()
    os.close(read)
    with open(write, "w") as stream:
        yield stream


# --- Signals ------------------------------------------------------------------------------------------------------


@posix
@pytest.mark.parametrize("name", SCRIPTS)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_torch_is_imported_ends_every_command_without_a_word(name, number, tmp_path):
    (tmp_path / "torch.py").write_text("import time\nprint('importing', flush=True)\ntime.sleep(60)\n")
    path = os.pathsep.join(map(str, (tmp_path, ROOT)))
    process = subprocess.Popen(
        [sys.executable, *SCRIPTS[name], "a.png", "x."],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "importing\n"
    process.send_signal(number)
    printed = process.communicate(timeout=60)
    assert (process.returncode, *printed) == (-number, "", "")  # a shell calls this 128 + number


def raise_at(call: int, numbers: list[int], owner: type, name: str, monkeypatch) -> None:
    """Let a method be interrupted by signals, one after the other, when it is called for the call-th time."""
    calls, method = [], getattr(owner, name)

    def instead(*args, **options):
        calls.append(1)
        if len(calls) == call:
            for number in numbers:
                signal.raise_signal(number)
        return method(*args, **options)

    monkeypatch.setattr(owner, name, instead)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_while_a_finished_training_is_measured_says_how_to_measure_it(number, training, monkeypatch, capfd):
    with monkeypatch.context() as patch:
        patch.setattr(run, "final_report", lambda trainer: signal.raise_signal(number))
        assert train_cifar.main(training) == 128 + number
    assert "trained and saved, but not measured; do that with: " in capfd.readouterr().out
    assert train_cifar.main(["--resume", training[training.index("--out") + 1]]) == 0


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_saves_a_training_that_goes_on_from_there(number, training, tmp_path, monkeypatch, capfd):
    with monkeypatch.context() as patch:
        raise_at(3, [number], Trainer, "train_step", patch)
        assert train_cifar.main(training) == 128 + number
    printed = capfd.readouterr()
    assert "stopped in epoch 2 and saved; continue with" in printed.out and not printed.err
    assert (tmp_path / "run" / "last.pt").exists() and not list((tmp_path / "run").glob(".*"))
    raise_at(2, [number], Trainer, "train_step", monkeypatch)
    assert train_cifar.main(["--resume", str(tmp_path / "run")]) == 128 + number
    assert "stopped in epoch 3 and saved" in capfd.readouterr().out


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_at_the_end_of_the_last_epoch_stops_before_the_report_and_resume_makes_it(
    number, training, tmp_path, monkeypatch, capfd
):
    last = [*training[: training.index("--epochs")], "--epochs", "2", *training[training.index("--epochs") + 2 :]]
    with monkeypatch.context() as patch:
        raise_at(2, [number], Trainer, "end_epoch", patch)
        assert train_cifar.main(last) == 128 + number
    assert "stopped in epoch 2 and saved; continue with" in capfd.readouterr().out
    assert not (tmp_path / "run" / "result.json").exists()
    assert train_cifar.main(["--resume", str(tmp_path / "run")]) == 0
    assert (tmp_path / "run" / "result.json").exists()


@pytest.mark.parametrize("number", SIGNALS)
def test_a_second_signal_ends_a_training_at_once_with_the_checkpoint_of_before(
    number, training, tmp_path, monkeypatch, capfd
):
    raise_at(3, [number, number], Trainer, "train_step", monkeypatch)
    assert train_cifar.main(training) == 128 + number
    printed = capfd.readouterr()
    assert "stopped in" not in printed.out and not printed.err
    assert not list((tmp_path / "run").glob(".*"))


@pytest.mark.parametrize("place", ["prepare_run", "final_report"])
def test_a_signal_before_and_after_the_epochs_is_quiet_too(place, training, monkeypatch, capfd):
    raise_at(1, [signal.SIGINT], cli.run, place, monkeypatch)
    assert train_cifar.main([*training, "--epochs", "1"]) == 130
    assert not capfd.readouterr().err


@pytest.mark.parametrize("number", SIGNALS)
def test_two_signals_end_a_video_at_once_with_their_status(number, tmp_path, monkeypatch, capfd):
    words = [save_film(tmp_path / "film", 4), "bright.", "--frames", "--format", "gif", "--out", tmp_path / "out"]
    monkeypatch.setattr(video, "SAVE_EVERY", 0.0)
    with monkeypatch.context() as patch:
        raise_at(3, [number, number], outputs.VideoOutput, "add", patch)
        assert command(*words) == 128 + number
    assert not capfd.readouterr().err
    assert command(*words, "--resume") == 0


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="no SIGHUP here")
def test_a_signal_that_is_ignored_stays_ignored_as_under_nohup(training, tmp_path, monkeypatch):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        raise_at(1, [signal.SIGHUP], Trainer, "train_step", monkeypatch)
        assert train_cifar.main([*training, "--epochs", "1"]) == 0
        raise_at(1, [signal.SIGHUP], outputs.VideoOutput, "add", monkeypatch)
        words = [save_film(tmp_path / "film", 2), "bright.", "--frames", "--format", "gif"]
        assert command(*words, "--out", tmp_path / "out") == 0
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("form", [processes, process])
def test_handlers_of_before_come_back_and_other_threads_do_without(form):
    before, inside = [signal.getsignal(number) for number in form.SIGNALS], []
    with form.on_signals(form.stop):
        assert {signal.getsignal(number) for number in form.SIGNALS} == {form.stop}
    assert [signal.getsignal(number) for number in form.SIGNALS] == before

    def other():
        with form.on_signals(form.stop):
            inside.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    assert inside == [signal.getsignal(signal.SIGINT)]


# --- Readers that go ----------------------------------------------------------------------------------------------


def test_a_training_whose_reader_goes_ends_with_its_last_epoch_saved(training, tmp_path, gone, monkeypatch, capfd):
    first = cli.first_line
    monkeypatch.setattr(cli, "first_line", lambda trainer: monkeypatch.setattr("sys.stdout", gone) or first(trainer))
    say, said = cli.say, []

    def lose_later(line: str) -> None:
        said.append(line)
        if len(said) > 1:  # | head -1
            say(line)

    monkeypatch.setattr(cli, "say", lose_later)
    assert train_cifar.main(training) == 141
    assert not capfd.readouterr().err
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 1
    monkeypatch.undo()
    raise_at(1, [signal.SIGINT], Trainer, "train_step", monkeypatch)
    assert train_cifar.main(["--resume", str(tmp_path / "run")]) == 130
    assert "stopped in epoch 2 and saved" in capfd.readouterr().out


def test_a_video_whose_reader_goes_is_saved_as_after_ctrl_c(tmp_path, gone, monkeypatch, capfd):
    words = [save_film(tmp_path / "film", 5), "bright.", "--frames", "--format", "gif", "--out", tmp_path / "out"]
    monkeypatch.setattr("sys.stdout", gone)
    assert command(*words, "--json", "-", "--quiet") == 141
    assert not capfd.readouterr().err and (tmp_path / "out" / "film" / ".unfinished" / "state.pt").exists()
    monkeypatch.undo()
    assert command(*words, "--resume") == 0


def test_errors_whose_reader_has_gone_do_not_stop_the_other_inputs(tmp_path, gone, monkeypatch):
    (tmp_path / "a.png").write_text("no picture")
    sources = [tmp_path / "a.png", save(picture(5), tmp_path / "b.png")]
    monkeypatch.setattr("sys.stderr", gone)
    assert command(*sources, "bright.", "--out", tmp_path / "out") == 2
    assert (tmp_path / "out" / "b" / "result.json").exists()


def test_an_error_of_a_training_whose_reader_has_gone_keeps_its_status(training, gone, monkeypatch):
    monkeypatch.setattr("sys.stderr", gone)
    assert train_cifar.main([*training, "--data-root", "nowhere"]) == 2


@posix
@pytest.mark.parametrize("script", ["segment.py", "train_cifar.py"])
def test_a_standard_output_that_is_closed_from_the_start_is_no_error(script):
    words = f'"{sys.executable}" {script} --help >&-'
    done = subprocess.run(words, shell=True, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


# --- Memory -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [*NO_MEMORY, OSError(12, "Cannot allocate memory")],
    ids=lambda error: f"{type(error).__name__}: {error}"[:30],
)
def test_memory_that_a_training_lacks_is_one_line_that_says_what_to_lower(error, training, monkeypatch, capfd):
    def step(*_):
        raise error

    monkeypatch.setattr(Trainer, "train_step", step)
    assert train_cifar.main(training) == 2
    said = capfd.readouterr().err
    assert said.startswith("error: out of memory: lower --batch-size") and "--accumulate" in said
    assert said.count("\n") == 1


def test_another_error_of_pytorch_in_a_training_is_not_taken_for_a_lack_of_memory(training, monkeypatch):
    monkeypatch.setattr(Trainer, "train_step", lambda *_: (_ for _ in ()).throw(RuntimeError("shapes do not fit")))
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        train_cifar.main(training)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits of memory are another thing here")
def test_a_training_that_memory_does_not_hold_is_one_line(training):
    limited = (
        "import resource, sys, train_cifar, minivit.cli; "
        "pages = int(open('/proc/self/statm').read().split()[0]); "
        "resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (400 << 20),) * 2); "
        "sys.exit(train_cifar.main(sys.argv[1:]))"
    )
    words = [*training, "--dim", "4096", "--heads", "8", "--depth", "4"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", limited, *words], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 2 and done.stderr.startswith("error: out of memory: lower --batch-size"), done.stderr
    assert done.stderr.count("\n") == 1


HEAT_LEFT = "--heat-size 352 or smaller pictures"


@pytest.mark.parametrize(
    "flags, ways",
    [
        ([], "a smaller --sam, --size 512, --dtype bfloat16 or smaller pictures"),
        (["--weights", "demo"], "--dtype bfloat16 or smaller pictures"),
        (
            ["--sam", "tiny", "--dtype", "bfloat16", "--heat-size", "704"],
            "--size 512, --heat-size 352 or smaller pictures",
        ),
        (["--sam", "tiny", "--dtype", "float16", "--size", "512"], "smaller pictures"),
    ],
)
def test_memory_that_runs_out_while_models_load_names_what_can_still_be_smaller(flags, ways, tmp_path, capsys):
    def load(*_):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes.")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(segment_run, "load_models", load)
        source = save(picture(5), tmp_path / "a.png")
        assert segment.main([source, "bright.", *flags, "--method", "clipseg", "--out", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err == f"error: out of memory: take {ways}\n"


def test_pictures_that_do_not_fit_together_are_tried_one_by_one(tmp_path, monkeypatch, capsys):
    segment_images = Job.segment_images

    def only_one(self, images):
        if len(images) > 1:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")
        return segment_images(self, images)

    monkeypatch.setattr(Job, "segment_images", only_one)
    monkeypatch.setitem(segment_run.BATCH, "cpu", 4)
    sources = [save(picture(5 + i), tmp_path / f"{i}.png") for i in range(3)]
    assert command(*sources, "bright.", "--out", tmp_path / "out") == 0
    assert not capsys.readouterr().err and len(list((tmp_path / "out").iterdir())) == 3


# --- What is left after a new start -------------------------------------------------------------------------------


def test_the_time_left_of_a_resumed_training_counts_what_this_process_did(monkeypatch):
    row = {"epoch": 3, "train_loss": 1.0, "train_acc": 0.5, "lr": 1e-3, "images_per_s": 10.0}
    trainer = SimpleNamespace(history=[row], total_steps=630, step=30, config=SimpleNamespace(epochs=63))
    monkeypatch.setattr(cli.time, "perf_counter", lambda: 12.0)
    assert cli.epoch_line(trainer, started=2.0, first=20).endswith("10 min left")  # 600 steps, one second each
