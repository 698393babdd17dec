"""Checkpoints: one table of published files, a cache folder, and a download that is checked and never half done.

A download goes to a `.part` file, goes on from where an earlier one stopped (HTTP Range, RFC 9110 section 14),
is checked for size and SHA-256, and only then takes its name. Sizes and hashes are those that the publishers or
several independent projects state; None is unknown and not checked. Left out: credentials, parallel connections.
"""

import hashlib
import http.client
import os
import shutil
import ssl
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

CHUNK = 1 << 20  # bytes read at a time
TIMEOUT = 30  # seconds without an answer before a connection counts as dropped
ATTEMPTS = 5  # connections to one URL that may drop before the next URL is tried
Progress = Callable[[str, int, int | None], None]  # name, bytes so far, bytes in all


class WeightsError(ValueError):
    """A weights file is missing, damaged or not to be had; the message says which, from where, and how to mend it."""


@dataclass(frozen=True)
class Checkpoint:
    """A published file. `sha256`: 64 hexadecimal digits, or the first 8 where only the file's name states them."""

    model: str  # who reads it: "grounding dino", "sam 2", "clipseg" or "vit"
    file: str  # its name in the cache folder and in a folder of the user's
    urls: tuple[str, ...]  # the same bytes at each, tried in this order
    bytes: int | None
    sha256: str | None
    licence: str  # of the weights, as far as their publisher states one
    restricted: bool = False  # not an open licence, or none that is certain


HUB = "https://huggingface.co"
APACHE = "Apache-2.0"


def _dino(release: str, file: str, size: int, sha256: str) -> Checkpoint:
    urls = (
        f"https://github.com/IDEA-Research/GroundingDINO/releases/download/{release}/{file}",
        f"{HUB}/ShilongLiu/GroundingDINO/resolve/main/{file}",
    )
    return Checkpoint("grounding dino", file, urls, size, sha256, APACHE)


def _sam(date: str, name: str, size: int, sha256: str) -> Checkpoint:
    urls = (
        f"https://dl.fbaipublicfiles.com/segment_anything_2/{date}/{name}.pt",
        f"{HUB}/facebook/{name.replace('_', '-')}/resolve/main/{name}.pt",
    )
    return Checkpoint("sam 2", f"{name}.pt", urls, size, sha256, APACHE)


def _vit(url: str, size: int | None, sha256: str | None, licence: str, restricted: bool = False) -> Checkpoint:
    return Checkpoint("vit", url.rsplit("/", 1)[1], (url,), size, sha256, licence, restricted)


TORCHVISION = "https://download.pytorch.org/models"
DEIT = "https://dl.fbaipublicfiles.com/deit"
AUGREG2 = f"{HUB}/timm/vit_base_patch16_224.augreg2_in21k_ft_in1k/resolve"
SWAG = "CC-BY-NC-4.0, no commercial use (facebookresearch/SWAG)"
CHECKPOINTS: dict[str, Checkpoint] = {
    "swin-t": _dino(
        "v0.1.0-alpha",
        "groundingdino_swint_ogc.pth",
        693997677,
        "3b3ca2563c77c69f651d7bd133e97139c186df06231157a64c507099c52bc799",
    ),
    "swin-b": _dino(
        "v0.1.0-alpha2",
        "groundingdino_swinb_cogcoor.pth",
        938057991,
        "46270f7a822e6906b655b729c90613e48929d0f2bb8b9b76fd10a856f3ac6ab7",
    ),
    "bert-vocab": Checkpoint(
        "grounding dino",
        "bert-base-uncased-vocab.txt",
        (
            f"{HUB}/google-bert/bert-base-uncased/resolve/main/vocab.txt",
            f"{HUB}/bert-base-uncased/resolve/86b5e0934494bd15c9632b12f734a8a67f723594/vocab.txt",
        ),
        231508,
        "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
        APACHE,
    ),
    "sam2.1_hiera_tiny": _sam(
        "092824", "sam2.1_hiera_tiny", 156008466, "7402e0d864fa82708a20fbd15bc84245c2f26dff0eb43a4b5b93452deb34be69"
    ),
    "sam2.1_hiera_small": _sam(
        "092824", "sam2.1_hiera_small", 184416285, "6d1aa6f30de5c92224f8172114de081d104bbd23dd9dc5c58996f0cad5dc4d38"
    ),
    "sam2.1_hiera_base_plus": _sam(
        "092824",
        "sam2.1_hiera_base_plus",
        323606802,
        "a2345aede8715ab1d5d31b4a509fb160c5a4af1970f199d9054ccfb746c004c5",
    ),
    "sam2.1_hiera_large": _sam(
        "092824", "sam2.1_hiera_large", 898083611, "2647878d5dfa5098f2f8649825738a9345572bae2d4350a2468587ece47dd318"
    ),
    "sam2_hiera_tiny": _sam(
        "072824", "sam2_hiera_tiny", 155906050, "65b50056e05bcb13694174f51bb6da89c894b57b75ccdf0ba6352c597c5d1125"
    ),
    "sam2_hiera_small": _sam(
        "072824", "sam2_hiera_small", 184309650, "95949964d4e548409021d47b22712d5f1abf2564cc0c3c765ba599a24ac7dce3"
    ),
    "sam2_hiera_base_plus": _sam(
        "072824", "sam2_hiera_base_plus", 323493298, "d0bb7f236400a49669ffdd1be617959a8b1d1065081789d7bbff88eded3a8071"
    ),
    "sam2_hiera_large": _sam(
        "072824", "sam2_hiera_large", 897952466, "7442e4e9b732a508f80e141e7c2913437a3610ee0c77381a66658c3a445df87b"
    ),
    "clipseg": Checkpoint(
        "clipseg",
        "clipseg-rd64-refined.bin",
        (f"{HUB}/CIDAS/clipseg-rd64-refined/resolve/main/pytorch_model.bin",),
        None,
        "dd9308225b8314bb7236f207e6ea72b22db5d90dba03fe3dc7d654f54dcfd08a",
        "uncertain: its authors exclude the weights from the code's MIT licence and name no other; "
        "their Hugging Face page is tagged apache-2.0",
        restricted=True,
    ),
    "clip-bpe": Checkpoint(
        "clipseg",
        "bpe_simple_vocab_16e6.txt.gz",
        ("https://github.com/openai/CLIP/raw/main/clip/bpe_simple_vocab_16e6.txt.gz",),
        1356917,
        "924691ac288e54409236115652ad4aa250f48203de50a9e4722a6ecd48d6804a",
        "MIT",
    ),
    "vit_b_16": _vit(
        f"{TORCHVISION}/vit_b_16-c867db91.pth",
        346328529,
        "c867db91d3e12c6cbadabb610d73c24a546bf82d8c03a9fea34f43a712ddb0e9",
        "none stated",
    ),
    "vit_b_16_swag": _vit(
        f"{TORCHVISION}/vit_b_16_swag-9ac1b537.pth",
        None,
        "9ac1b5378d9927bd6c8374ce0cd557ef80e1b3f8fbc1859df332c4dc9d0fd825",
        SWAG,
        restricted=True,
    ),
    "vit_b_16_lc_swag": _vit(f"{TORCHVISION}/vit_b_16_lc_swag-4e70ced5.pth", None, "4e70ced5", SWAG, restricted=True),
    "vit_base_patch16_224.augreg2": Checkpoint(
        "vit",
        "vit_base_patch16_224.augreg2_in21k_ft_in1k.safetensors",
        (f"{AUGREG2}/main/model.safetensors", f"{AUGREG2}/063c6c38a5d8510b2e57df480445e94b231dad2c/model.safetensors"),
        346284714,
        "32aa17d6e17b43500f531d5f6dc9bc93e56ed8841b8a75682e1bb295d722405b",
        APACHE,
    ),
    "deit_base_patch16_224": _vit(f"{DEIT}/deit_base_patch16_224-b5f2ef4d.pth", None, "b5f2ef4d", APACHE),
    "deit_small_patch16_224": _vit(f"{DEIT}/deit_small_patch16_224-cd65a155.pth", None, "cd65a155", APACHE),
    "deit_tiny_patch16_224": _vit(f"{DEIT}/deit_tiny_patch16_224-a1311bcf.pth", None, "a1311bcf", APACHE),
}


def cache_dir() -> Path:
    """The folder of downloaded files: MINISAM_HOME, else `minisam_glue` in the user's cache of the platform."""
    if os.environ.get("MINISAM_HOME"):
        return Path(os.environ["MINISAM_HOME"]).expanduser()
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "minisam_glue"


def describe(name: str) -> str:
    """One line for people: name, file, size, licence and whether it is restricted. WeightsError if unknown."""
    checkpoint = _look_up(name)
    size = f"{checkpoint.bytes / 1e6:,.1f} MB" if checkpoint.bytes else "size unknown"
    licence = f"RESTRICTED LICENCE, {checkpoint.licence}" if checkpoint.restricted else checkpoint.licence
    return f"{name}: {checkpoint.file}, {size}, {licence}"


def find(name: str, folder: str | Path | None = None) -> Path | None:
    """The file of `name` in `folder` (default: the cache), or None. WeightsError if its size is wrong.

    The hash is checked when a file is downloaded, not each time it is found: `verify` does it again.
    """
    checkpoint = _look_up(name)
    path = Path(folder or cache_dir()) / checkpoint.file
    if not path.is_file():
        return None
    size = path.stat().st_size
    if checkpoint.bytes not in (None, size) or size == 0:
        raise WeightsError(
            f"{path} has {size} bytes instead of {checkpoint.bytes or 'more than none'}: "
            f"delete it, and {_how_to_get(checkpoint, path.parent)}"
        )
    return path


def fetch(name: str, folder: str | Path | None = None, progress: Progress | None = None) -> Path:
    """The file of `name`, downloaded first where it is missing. WeightsError if that fails or `folder` is not there."""
    if folder is not None and not Path(folder).is_dir():
        raise WeightsError(f"no folder {folder} to look for {_look_up(name).file} in: check the path")
    return find(name, folder) or download(name, folder, progress)


def download(name: str, folder: str | Path | None = None, progress: Progress | None = None) -> Path:
    """Get and check the file of `name`, into `folder` (default: the cache); one that is there already is kept.

    Several processes may ask at once: one downloads, the others wait and find it. WeightsError if it can't be had.
    """
    checkpoint, folder = _look_up(name), Path(folder or cache_dir())
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder / f".{checkpoint.file}.lock"):
            return find(name, folder) or _download(name, checkpoint, folder, progress or (lambda *_: None))
    except OSError as error:
        raise WeightsError(
            f"{folder} can't take {checkpoint.file} ({error.strerror or error}): make room or choose "
            f"another folder (MINISAM_HOME, --weights DIR), or use --weights demo"
        ) from error


def verify(path: Path, checkpoint: Checkpoint) -> str | None:
    """What is wrong with a file's size or hash, or None."""
    size = path.stat().st_size
    if checkpoint.bytes not in (None, size):
        return f"it has {size} bytes instead of {checkpoint.bytes}"
    digest = _sha256(path)
    if not digest.startswith(checkpoint.sha256 or ""):
        return f"its sha256 is {digest} instead of {checkpoint.sha256}"
    return None


def progress_line() -> Progress:
    """A progress that rewrites one line of a terminal's standard error, or prints two lines a file elsewhere."""
    began: dict[str, tuple[float, int]] = {}
    shown = 0.0

    def show(name: str, done: int, total: int | None) -> None:
        nonlocal shown
        now, ends = time.monotonic(), done == total
        first = name not in began
        start, offset = began.setdefault(name, (now, done))
        if not (first or ends or (sys.stderr.isatty() and now - shown > 0.1)):
            return
        shown = now
        rate = (done - offset) / max(now - start, 1e-3) / 1e6
        of = f" of {total / 1e6:.1f}" if total else ""
        line = f"{name}: {done / 1e6:.1f}{of} MB, {rate:.1f} MB/s"
        print(
            f"\r{line:<70}" if sys.stderr.isatty() else line,
            end="\n" if ends or not sys.stderr.isatty() else "",
            file=sys.stderr,
            flush=True,
        )

    return show


def _look_up(name: str) -> Checkpoint:
    if name not in CHECKPOINTS:
        raise WeightsError(f"no weights are called {name!r}: there are {', '.join(CHECKPOINTS)}")
    return CHECKPOINTS[name]


def _how_to_get(checkpoint: Checkpoint, folder: Path) -> str:
    facts = f"{checkpoint.bytes or 'unknown'} bytes, sha256 {checkpoint.sha256 or 'unknown'}"
    return (
        f"get {checkpoint.file} ({facts}) from {' or '.join(checkpoint.urls)} and put it in {folder}, "
        f"or name the folder that has it with --weights DIR, or use --weights demo"
    )


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Wait for, then hold, an operating-system lock: it goes with its process, so that a crash never leaves one."""
    with path.open("a+b") as file:
        if sys.platform == "win32":
            import msvcrt

            while True:
                try:
                    file.seek(0)
                    msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
                    break
                except OSError:
                    time.sleep(0.5)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX)
        yield  # closing the file lets go of the lock


def _download(name: str, checkpoint: Checkpoint, folder: Path, progress: Progress) -> Path:
    """Try each URL in turn; the lock is held, so the `.part` file is ours alone."""
    path = folder / checkpoint.file
    part = path.with_name(path.name + ".part")
    if checkpoint.sha256 is None:  # nothing would show that an old part belongs to another version of the file
        part.unlink(missing_ok=True)
    failures = []
    for url in checkpoint.urls:
        failure = _from_url(url, part, checkpoint, lambda done, total: progress(name, done, total))
        if failure is None:
            os.replace(part, path)
            return path
        failures.append(f"{url}: {failure}")
    raise WeightsError(f"{name} could not be downloaded ({'; '.join(failures)}): {_how_to_get(checkpoint, folder)}")


def _from_url(url: str, part: Path, checkpoint: Checkpoint, progress: Callable) -> str | None:
    """Complete and check `part` from one URL; returns why not, or None. A dropped connection is taken up again."""
    failure, attempt = "no answer", 0
    while attempt < ATTEMPTS:
        time.sleep(min(attempt * attempt * 0.1, 2))
        before = _size(part)
        try:
            _transfer(url, part, checkpoint, progress)
        except urllib.error.HTTPError as error:
            failure = f"HTTP {error.code} {error.reason}"
            if error.code < 500:
                return failure
        except urllib.error.URLError as error:
            return str(error.reason)
        except (http.client.HTTPException, TimeoutError, ConnectionError, ssl.SSLError) as error:
            failure = f"the connection dropped ({error})"
        except _OtherFile as error:
            return str(error)
        else:
            failure = verify(part, checkpoint)
            if failure is None:
                return None
            part.unlink()
            if not before:  # all of it came from here, so that asking again would not help
                return failure
        attempt = 0 if _size(part) > before else attempt + 1
    return failure


class _OtherFile(Exception):
    """A URL has something else than the file we know."""


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _transfer(url: str, part: Path, checkpoint: Checkpoint, progress: Callable) -> None:
    """One connection: append what is missing of `part`. ConnectionError if it ends early."""
    start = _size(part)
    if start and start == checkpoint.bytes:
        return
    headers = {"User-Agent": "minisam_glue"} | ({"Range": f"bytes={start}-"} if start else {})
    try:
        answer = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code != 416 or not start:
            raise
        if error.headers.get("Content-Range") != f"bytes */{start}":
            part.unlink()  # longer than the file itself
            raise ConnectionError("the part at hand was too long") from error
        return  # nothing was missing
    with answer:
        if answer.status != 206 or not answer.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
            start = 0  # the server sends the whole file again
        length = answer.headers.get("Content-Length")
        total = start + int(length) if length else checkpoint.bytes
        if None not in (total, checkpoint.bytes) and total != checkpoint.bytes:
            raise _OtherFile(f"it offers {total} bytes instead of {checkpoint.bytes}")
        if total and shutil.disk_usage(part.parent).free < total - start:
            raise OSError(f"there is no room for {(total - start) / 1e6:.0f} MB")
        done = _append(answer, part, start, lambda done: progress(done, total))
    if total not in (None, done):
        raise ConnectionError(f"after {done} of {total} bytes")


def _append(answer: http.client.HTTPResponse, part: Path, start: int, progress: Callable[[int], None]) -> int:
    """Write what arrives behind the first `start` bytes of `part`; returns its new length."""
    done = start
    with part.open("ab" if start else "wb") as file:
        progress(done)
        while chunk := answer.read(CHUNK):
            file.write(chunk)
            done += len(chunk)
            progress(done)
    return done
