"""Grounding DINO, arXiv 2303.05499: text to boxes.

    detector = Detector(accelerate(load("groundingdino_swint_ogc.pth")), WordPieceTokenizer.load("vocab.txt"))
    found = detector.detect(image, "car. traffic light.")      # found.boxes (n, 4), found.labels, found.scores

Reading order: model.py (the whole network), bert.py, swin.py, transformer.py (encoder, query selection, decoder), its
fusion.py, deformable_attention.py and geometry.py; then detector.py (prompts and thresholds), losses.py (training).
Without accelerate() the model is the papers' formulas, as those files have them; fast.py has equal and faster forms.
"""

from .detector import Detections, Detector
from .fast import accelerate
from .model import PRESETS, GroundingDINO, load
from .tokenizer import WordPieceTokenizer

__all__ = ["PRESETS", "Detections", "Detector", "GroundingDINO", "WordPieceTokenizer", "accelerate", "load"]
