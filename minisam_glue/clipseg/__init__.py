"""CLIPSeg, arXiv 2112.10003: phrases, or pictures of an object, to heat maps.

mapper = HeatMapper(load("clipseg-rd64-refined.bin"), CLIPTokenizer.load("bpe_simple_vocab_16e6.txt.gz"))
logits = mapper.heat_maps([image], ["a cat", "a remote"])      # (1, 2, 352, 352); their sigmoid is the confidence
"""

from .heat_mapper import HeatMapper, highlight
from .model import PRESETS, CLIPSeg, load
from .tokenizer import CLIPTokenizer

__all__ = ["PRESETS", "CLIPSeg", "CLIPTokenizer", "HeatMapper", "highlight", "load"]
