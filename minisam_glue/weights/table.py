"""The table of published checkpoints: file, URLs, size, SHA-256 and licence of each.

Sizes and hashes are those that the publishers or several independent projects state; None is unknown and not checked.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path


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


VOCABULARIES = {"swin-t": "bert-vocab", "swin-b": "bert-vocab", "clipseg": "clip-bpe"}  # of models that read a phrase


def with_vocabularies(names: Iterable[str]) -> list[str]:
    """These names, each once, and after each the file without which its model cannot read a phrase."""
    together = (name for model in names for name in (model, VOCABULARIES.get(model)) if name)
    return list(dict.fromkeys(together))


def look_up(name: str) -> Checkpoint:
    """The entry of `name`. WeightsError if there is none."""
    if name not in CHECKPOINTS:
        raise WeightsError(f"no weights are called {name!r}: there are {', '.join(CHECKPOINTS)}")
    return CHECKPOINTS[name]


def describe(name: str) -> str:
    """One line for people: name, file, size, licence and whether it is restricted. WeightsError if unknown."""
    checkpoint = look_up(name)
    size = f"{checkpoint.bytes / 1e6:,.1f} MB" if checkpoint.bytes else "size unknown"
    licence = f"RESTRICTED LICENCE, {checkpoint.licence}" if checkpoint.restricted else checkpoint.licence
    return f"{name}: {checkpoint.file}, {size}, {licence}"


def how_to_get(checkpoint: Checkpoint, folder: Path) -> str:
    """Instructions for a user without a download: file, size, hash, URLs, folder."""
    facts = f"{checkpoint.bytes or 'unknown'} bytes, sha256 {checkpoint.sha256 or 'unknown'}"
    return (
        f"get {checkpoint.file} ({facts}) from {' or '.join(checkpoint.urls)} and put it in {folder}, "
        f"or name the folder that has it with --weights DIR, or use --weights demo"
    )
