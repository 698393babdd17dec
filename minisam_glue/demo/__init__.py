"""Small models trained by this repository on generated scenes, so that everything runs with no download."""
from pathlib import Path

FOLDER = Path(__file__).parent
DETECTOR, SEGMENTER = "detector.pt", "segmenter.pt"  # files of weights, fp16
VOCABULARY = FOLDER / "vocab.txt"
SIDES = (160, 320)  # shorter and longest side of what the detector sees, pixels
