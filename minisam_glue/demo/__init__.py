"""Small models trained by this repository on generated scenes, so that everything runs with no download."""

from pathlib import Path

from .. import clipseg, grounding_dino, sam2
from ..grounding_dino.tokenizer import split_words

FOLDER = Path(__file__).parent
DETECTOR, HEAT_MAPPER, SEGMENTER = "detector.pt", "clipseg.pt", "segmenter.pt"  # files of weights, fp16
SEGMENTERS = ("demo", "demo_wide")  # presets of SAM 2 that the segmenter's file may have
VOCABULARY = FOLDER / "vocab.txt"
KNOWN = (
    "eight colours (red, green, blue, yellow, orange, purple, white, black) and "
    "eight shapes (circle, square, triangle, star, cross, ring, heart, hexagon)"
)
HEAT_FLOOR, HEAT_MIN_AREA, HEAT_EVIDENCE = 0.5, 30.0, 0.93  # see HeatSettings; chosen by evaluate_clipseg --floors
HEAT_SIZE = 256  # side of the square that the demo CLIPSeg sees, pixels: as in training
MIN_SIZE, MAX_SIZE = 224, 448  # sides of an image as the detector sees it: more than in training (arXiv 1906.06423)


def load_detector(path: str | Path, device: str = "cpu") -> grounding_dino.Detector:
    """The demo detector from its file (fp16) as fp32 on a device. ValueError if the file is another one."""
    model = grounding_dino.load(path, "demo").float().to(device)
    return grounding_dino.Detector(model, grounding_dino.WordPieceTokenizer.load(VOCABULARY), MIN_SIZE, MAX_SIZE)


def clip_tokenizer() -> clipseg.CLIPTokenizer:
    """CLIP's tokenizer with merges for the words of the demo's vocabulary alone; other words are spelled."""
    words = [word for word in VOCABULARY.read_text(encoding="utf-8").split() if word.isalpha()]
    merges = {}  # a dict keeps the order, and each pair once
    for word in words:
        letters = [*word[:-1], word[-1] + "</w>"]
        for i in range(1, len(letters)):
            merges["".join(letters[:i]), letters[i]] = None
    return clipseg.CLIPTokenizer(list(merges))


def load_heat_mapper(path: str | Path, device: str = "cpu") -> clipseg.HeatMapper:
    """The demo CLIPSeg from its file (fp16) as fp32 on a device. ValueError if the file is another one."""
    model = clipseg.load(path, "demo").float().to(device)
    return clipseg.HeatMapper(model, clip_tokenizer(), HEAT_SIZE)


def load_segmenter(path: str | Path, device: str = "cpu") -> sam2.SAM2:
    """The demo segmenter, of either width, from its file (fp16) as fp32. ValueError if the file is another one."""
    model = sam2.load(path)
    if model.config not in [sam2.PRESETS[name] for name in SEGMENTERS]:
        raise ValueError(f"{path} holds weights of a larger SAM 2: give a file that train_segmenter wrote")
    return model.float().to(device)


def foreign(phrases: list[str]) -> list[str]:
    """Phrases with a word that the demo detector was never taught, which it would spell letter by letter; or with no
    word at all."""
    tokens = VOCABULARY.read_text(encoding="utf-8").split()
    words = {token for token in tokens if token == "a" or len(token) > 1}
    spoken = {phrase: {word for word in split_words(phrase) if word.isalnum()} for phrase in phrases}
    return [phrase for phrase in phrases if not spoken[phrase] or not spoken[phrase] <= words]
