"""Small models trained by this repository on generated scenes, so that everything runs with no download."""

from pathlib import Path

from .. import grounding_dino, sam2
from ..grounding_dino.tokenizer import split_words

FOLDER = Path(__file__).parent
DETECTOR, SEGMENTER = "detector.pt", "segmenter.pt"  # files of weights, fp16
VOCABULARY = FOLDER / "vocab.txt"
KNOWN = (
    "eight colours (red, green, blue, yellow, orange, purple, white, black) and "
    "eight shapes (circle, square, triangle, star, cross, ring, heart, hexagon)"
)
SIDES = (224, 448)  # shorter and longest side the detector sees, pixels: more than in training (arXiv 1906.06423)


def load_detector(path: str | Path, device: str = "cpu") -> grounding_dino.Detector:
    """The demo detector from its file (fp16) as fp32 on a device. ValueError if the file is another one."""
    model = grounding_dino.load(path, "demo").float().to(device)
    return grounding_dino.Detector(model, grounding_dino.WordPieceTokenizer.load(VOCABULARY), SIDES)


def load_segmenter(path: str | Path, device: str = "cpu") -> sam2.SAM2:
    """The demo segmenter from its file (fp16) as fp32 on a device. ValueError if the file is another one."""
    return sam2.load(path, "demo").float().to(device)


def foreign(phrases: list[str]) -> list[str]:
    """Phrases with a word that the demo detector was never taught; it would spell it letter by letter."""
    tokens = VOCABULARY.read_text(encoding="utf-8").split()
    words = {token for token in tokens if token == "a" or len(token) > 1}
    return [phrase for phrase in phrases if not words.issuperset(w for w in split_words(phrase) if w.isalnum())]
