"""The command line of minivit: what is done, and what is printed."""

import logging
import re
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from minivit import chain, config, predict, run, study
from minivit.distributed import Ranks, is_told, join, own_ranks
from minivit.finetune import learning_share
from minivit.parser import parse_arguments
from minivit.process import CLOSED_PIPE, Stopped, lead_nowhere, on_signals, out_of_memory, stop
from minivit.reading import flag_of, optional, whole, within
from minivit.report import percent
from minivit.text import LogLines, complain, count, one_line, printable, say, shell_word
from minivit.train import Trainer
from minivit.train_config import TrainingError

NO_MEMORY = {  # by task
    "study": "out of memory: lower --batch-size",
    "train": "out of memory: lower --batch-size, raise --accumulate, which sends a batch through the model in parts, "
    "or give --checkpointing",
    "eval": "out of memory: take a smaller checkpoint, or fewer images (--subset)",
    "export": "out of memory: take a smaller checkpoint",
    "predict": "out of memory: make the picture smaller, or take a smaller checkpoint",
}

TASKS = ("resume", "eval", "predict", "export", "study")  # beside training
FLAGS_OF_TASKS = {"tta": ("eval", "predict"), "save_predictions": ("predict",), "save_attention": ("predict",)}
FLAGS_OF_TASKS |= dict.fromkeys(("seeds", "repeat", "hours", "cpu_minutes"), ("study",))
OF_THE_MACHINE = ("device", "threads")
FLAGS_READ = {  # by the tasks that train nothing
    "eval": {"data", "data_root", "subset", "skip_bad", "tta", "out", *OF_THE_MACHINE},
    "predict": {"tta", "save_predictions", "save_attention", *OF_THE_MACHINE},
    "export": set(),
}
ENDS = ("epochs", "hours", "cpu_minutes")  # of a run


def main(argv: list[str] | None = None, command: str = "minivit") -> int:
    """Run the command line and return its exit status.

    A usage or input error is one line on standard error. command: how the user calls this program.
    """
    show_warnings()
    task = "train"
    try:
        with on_signals(stop):
            given = vars(parse_arguments(argv, command))
            task = next((name for name in NO_MEMORY if name in given), task)
            status = run_task(given, command)
            sys.stdout.flush()
        return status
    except BrokenPipeError:  # `| head` has seen enough
        lead_nowhere(sys.stdout)
        return 128 + CLOSED_PIPE
    except KeyboardInterrupt as stopped:
        return 128 + getattr(stopped, "number", signal.SIGINT)
    except (ValueError, OSError, RuntimeError, MemoryError) as error:
        # DataError, TrainingError, CheckpointError, files out of reach; or no memory, however that is said
        if not out_of_memory(error) and isinstance(error, RuntimeError):
            raise
        if is_told(error):
            complain(f"error: {NO_MEMORY[task] if out_of_memory(error) else one_line(error)}")
        return 2


def run_task(given: dict, command: str) -> int:
    """Do what the arguments ask for, and return the exit status."""
    check_tasks(given)
    if "eval" in given:
        return predict.evaluate(given.pop("eval"), given)
    if "predict" in given:
        path, *images = given.pop("predict")
        return predict.classify(path, images, given)
    if "study" in given:
        return run_study(given.pop("study"), given, command)
    if "export" in given:
        return run_export(given["export"])
    return train(given, command)


def run_export(words: list[Path]) -> int:
    """Write the model of a checkpoint to a file for other programs."""
    from minivit.export import ExportError, export  # its libraries take seconds

    if len(words) != 2:
        raise ExportError("--export needs a checkpoint and a file: --export best.pt model.onnx")
    export(*words)
    return 0


def run_study(name: str, given: dict, command: str) -> int:
    """Train a table of variants. Ctrl-C finishes a step and saves; the same command goes on."""
    whole(1, 1000)(given.get("seeds", 1), "--seeds")
    optional(within(0, 10_000, "(]"))(given.get("hours"), "--hours")
    optional(within(0, 600_000, "(]"))(given.get("cpu_minutes"), "--cpu-minutes")
    ends = [flag_of(name) for name in ENDS if name in given]
    if len(ends) > 1:
        raise ValueError(f"{ends[1]} and {ends[0]} both end a run: give one of them")
    if "config" in given or "teacher" in given:
        raise ValueError(f"--{'config' if 'config' in given else 'teacher'} goes with a run, not with --study")

    def fit_or_stop(trainer: Trainer) -> None:
        finished, number = fit_answering(trainer, command)
        if not finished:
            say("stopped and saved; the same command goes on")
            raise Stopped(number)

    return study.study(name, given, fit_or_stop)


def check_tasks(given: dict) -> None:
    """ValueError for two tasks at once, or for a flag of another task than the one that is asked for."""
    asked = [name for name in TASKS if name in given] or ["train"]
    if asked[0] not in ("train", "resume") and own_ranks().number > 1:
        raise ValueError(f"--{asked[0]} runs in one process: start it without torchrun")
    if len(asked) > 1:
        raise ValueError(f"--{asked[0]} and --{asked[1]} are two tasks: ask for one of them")
    for name, tasks in FLAGS_OF_TASKS.items():
        if name in given and asked[0] not in tasks:
            raise ValueError(f"{flag_of(name)} goes with {' and '.join(f'--{task}' for task in tasks)}")
    if asked[0] in FLAGS_READ:
        idle = [name for name in given if name not in FLAGS_READ[asked[0]] | {asked[0]}]
        if idle:
            why = "trains nothing" if any(name in config.OF_TRAINING for name in idle) else "does not need it"
            raise ValueError(f"--{asked[0]} {why}: leave out {', '.join(map(flag_of, idle))}")
    if asked[0] == "resume" and "out" in given:
        raise ValueError("--resume goes on in its own folder: leave out --out")


def show_warnings() -> None:
    """Print warnings of this package as lines, none of Pillow's, and letters that a terminal lacks as escapes."""
    log = logging.getLogger(__package__)
    if not any(isinstance(handler, LogLines) for handler in log.handlers):
        log.addHandler(LogLines(logging.WARNING))
    logging.getLogger("PIL").setLevel(logging.CRITICAL)  # what it can't read is refused in our words
    if hasattr(sys.stdout, "reconfigure"):  # not in notebooks
        sys.stdout.reconfigure(errors="backslashreplace")


def train(given: dict, command: str) -> int:
    """Train or resume; a teacher that is to be trained comes first. Returns the exit status."""
    ranks = join(given)
    args, resume = ranks.together(lambda: config.arguments(given))
    to_continue = f"{command} --resume {shell_word(args['out'])}"
    teacher = None if resume else ranks.together(lambda: chain.teacher_run(args, ranks.number))

    def note_idle_flags() -> None:
        for note in config.idle_flags(given, args) if ranks.first and not resume else ():
            say(f"note: {note}")

    if teacher:
        status = train_one(*config.arguments(teacher), to_continue, ranks, lambda: chain.begin(args, say))
        if status:
            return status
    return train_one(args, resume, to_continue, ranks, note_idle_flags)


def train_one(
    args: dict, resume: bool, to_continue: str, ranks: Ranks, prepared: Callable[[], None] = lambda: None
) -> int:
    """Do one run, from what config.arguments returned, and return the exit status.

    Ctrl-C finishes the step, saves a checkpoint, and prints how to continue; a second one ends at once, with the
    checkpoint of before. to_continue: the command for that. prepared: called before the first step.
    """
    tell = say if ranks.first else lambda line: None
    trainer, _ = ranks.together(lambda: run.prepare_run(args, resume, tell, ranks))
    prepared()
    try:
        finished, number = fit_answering(trainer, to_continue)
        if not finished:
            if ranks.first:
                epoch = min(trainer.epoch + 1, trainer.config.epochs)
                say(f"stopped in epoch {epoch} and saved; continue with: {to_continue}")
            return 128 + number
        if not ranks.first:
            return 0
        show_result(report_answering(trainer, to_continue), trainer.run)
        return 0
    finally:
        if trainer.claim:
            trainer.claim.release()


def report_answering(trainer: Trainer, to_continue: str) -> dict:
    """Measure a finished run and write its report. A signal ends that at once, and the command that does it is told."""
    try:
        with on_signals(stop):
            return run.final_report(trainer)
    except Stopped:
        say(f"trained and saved, but not measured; do that with: {to_continue}")
        raise


def fit_answering(trainer: Trainer, to_continue: str) -> tuple[bool, int]:
    """Train, and stop after the current step when a signal asks for it: whether it is finished, and the signal."""
    asked = []

    def save_and_stop(number: int, frame: object) -> None:
        if trainer.stop_requested and trainer.ranks.number == 1:  # torchrun sends a signal more than once
            raise Stopped(number)
        trainer.stop_requested = True
        asked.append(number)

    with on_signals(save_and_stop):
        finished = fit_together(trainer, to_continue)
    return finished, (asked or [signal.SIGTERM])[0]


def fit_together(trainer: Trainer, to_continue: str) -> bool:
    """Train as `fit` does. TrainingError in all processes that are left when one of several has ended before."""
    try:
        finished = fit(trainer) if trainer.ranks.first else trainer.fit()
        trainer.ranks.leave()
        return finished
    except RuntimeError as error:  # of the connection to a process that is no longer there
        if trainer.ranks.number == 1 or out_of_memory(error):
            raise
        reason = re.sub(r"^\[\S+\] ", "", one_line(error))[:80]  # without a file of PyTorch's sources
        raise TrainingError(
            f"another of the {trainer.ranks.number} processes has ended ({reason}): continue from the last epoch, with "
            f"any number of processes: {to_continue}"
        ) from None


def fit(trainer: Trainer) -> bool:
    """Train with a progress bar on a terminal, a line per epoch elsewhere. False when stopped and saved."""
    say(first_line(trainer))
    bar, started, first = make_bar(trainer), time.perf_counter(), trainer.step

    def on_step() -> None:
        if bar is None:
            return
        if trainer.batch % 10 == 0:
            loss, hits, images = (float(s) for s in trainer.sums)
            images = max(images, 1)  # there are none if no step of this epoch was finite
            bar.set_postfix(
                epoch=f"{trainer.epoch + 1}/{trainer.config.epochs}",
                loss=f"{loss / images:.3f}",
                acc=f"{hits / images:.1%}",
                lr=f"{trainer.lr:.1e}",
                refresh=False,
            )
        bar.update(trainer.batch_size)

    def on_epoch() -> None:
        line = epoch_line(trainer, started, first)
        say(line) if bar is None else bar.write(printable(line))

    finished = trainer.fit(on_step=on_step, on_epoch=on_epoch)
    if bar is not None:
        bar.close()
    return finished


def make_bar(trainer: Trainer):
    """A tqdm bar that counts images; None without a terminal or without tqdm."""
    if not sys.stderr.isatty():
        return None
    try:
        from tqdm import tqdm
    except ImportError:
        return None
    return tqdm(
        total=trainer.total_steps * trainer.batch_size,
        initial=trainer.step * trainer.batch_size,
        unit="img",
        unit_scale=True,
        dynamic_ncols=True,
    )


def first_line(trainer: Trainer) -> str:
    """Describe the run: preset, parameters, images, epochs, device, precision."""
    learning, parameters = learning_share(trainer.model)
    size = f"{parameters / 1e6:.2f}M parameters"
    if trainer.config.train_last is not None:
        size = f"{learning / 1e6:.2f}M of {size} learn ({percent(learning / parameters)} %)"
    precision = str(trainer.dtype).removeprefix("torch.")
    return (
        f"{trainer.describe['preset']}: {size}, "
        f"{count(len(trainer.train_split), 'image')}, {count(trainer.config.epochs, 'epoch')}, "
        f"{trainer.device}, {precision}"
    )


def epoch_line(trainer: Trainer, started: float, first: int) -> str:
    """The last finished epoch, and the minutes left at the speed since `started` (perf_counter, at step `first`)."""
    row = trainer.history[-1]
    left = (trainer.total_steps - trainer.step) * (time.perf_counter() - started) / max(trainer.step - first, 1)
    held_out = ""
    if "val_acc" in row:
        held_out = f"  hold-out {percent(row['val_acc'])}% (EMA {percent(row['val_acc_ema'])}%)"
    accuracy = percent(row["train_acc"])
    return (
        f"epoch {row['epoch']:>3}/{trainer.config.epochs}  loss {row['train_loss']:.4f}  acc {accuracy}%"
        f"{held_out}  lr {row['lr']:.2e}  {row['images_per_s']:.0f} img/s  {left / 60:.0f} min left"
    )


def show_result(result: dict, folder: Path) -> None:
    """Print the test accuracy of all weights of a run, and where its report is."""
    if result["stopped_early"]:
        say(f"stopped early, after epoch {result['epochs']}: the hold-out accuracy no longer rose (--patience)")
    for name in run.WEIGHTS:
        if f"test_acc_{name}" in result:
            by = " by the hold-out" if name == "best" else ""
            mark = f"  <- chosen{by}, best.pt" if name == result["chosen"] else ""
            say(f"test accuracy, {run.weights_name(name):<14} {percent(result[f'test_acc_{name}'])} %{mark}")
    if result["val_acc"] is not None:
        say(f"hold-out accuracy of the chosen weights: {percent(result['val_acc'])} %")
    say(f"report: {folder / 'report' / 'report.md'}")
