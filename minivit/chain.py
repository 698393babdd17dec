"""A teacher and then its student in one command: --teacher train:resnet18.

The teacher's run is teacher/ inside the student's run folder. It sees the same training images and the same hold-out,
and is trained by its own preset's recipe. Both runs resume: the student's folder holds its arguments from the start.
"""

from collections.abc import Callable
from pathlib import Path

from minivit import config, run
from minivit.distill import preset_to_train, teacher_folder
from minivit.reading import flag_of
from minivit.train_config import TrainingError

SHARED = (
    "data",
    "data_root",
    "val_split",
    "subset",
    "skip_bad",
    "seed",
    "device",
    "threads",
    "amp",
)  # by teacher and student
OF_THE_RUN = (
    "preset",
    "data",
    "data_root",
    "val_split",
    "subset",
    "seed",
)  # what a teacher that is there has to agree in


def teacher_run(args: dict, processes: int = 1) -> dict | None:
    """The arguments of the teacher's run that is to be done before the student's, None if there is none to do.

    args: of the student, resolved; they are checked here, before hours go into the teacher. ValueError if they cannot
    be used, or if the folder holds another teacher.
    """
    preset = preset_to_train(args["teacher"])
    if not preset:
        return None
    run.check(args)
    run.check_new(args["out"])
    folder = teacher_folder(args["out"])
    wanted = {name: args[name] for name in SHARED} | {"preset": preset, "out": folder}
    if args["teacher_epochs"]:
        wanted["epochs"] = args["teacher_epochs"]
    if (folder / "config.json").exists():
        check_same(folder, wanted)
    if (folder / "result.json").exists():
        return None
    if processes > 1:
        raise TrainingError(
            f"--teacher {args['teacher']} trains in one process: first the teacher, --preset {preset} --out {folder}, "
            "which torchrun can do; then this command again"
        )
    if (folder / "last.pt").exists():
        return {"resume": folder} | {name: args[name] for name in ("data_root", "device", "threads")}
    return wanted


def begin(args: dict, say: Callable[[str], None]) -> None:
    """Write the student's arguments, with which --resume finds its teacher; the teacher's run is prepared."""
    config.write_arguments(args["out"] / "config.json", args)
    say(f"first the teacher, {preset_to_train(args['teacher'])}, in {teacher_folder(args['out'])}")


def check_same(folder: Path, wanted: dict) -> None:
    """TrainingError unless the teacher in a folder is the one that is wanted."""
    there = config.read_config(folder / "config.json")
    names = [name for name in (*OF_THE_RUN, "epochs") if name in wanted and there.get(name) != wanted[name]]
    if "data_root" in names and Path(there["data_root"]).name == Path(wanted["data_root"]).name:
        names.remove("data_root")  # the folder was moved
    if names:
        flags = ", ".join(flag_of("teacher_epochs" if name == "epochs" else name) for name in names)
        raise TrainingError(f"{folder} holds a teacher of another {flags}: choose another --out, or give the same")
