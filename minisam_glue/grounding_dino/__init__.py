"""Grounding DINO, arXiv 2303.05499: text to boxes.

detector = Detector(load("groundingdino_swint_ogc.pth"), WordPieceTokenizer.load("vocab.txt"))
found = detector.detect(image, "car. traffic light.")      # found.boxes (n, 4), found.labels, found.scores
"""

from .detector import Detections, Detector
from .model import PRESETS, GroundingDINO, load
from .tokenizer import WordPieceTokenizer

__all__ = ["PRESETS", "Detections", "Detector", "GroundingDINO", "WordPieceTokenizer", "load"]
