"""Our tokenizers on the golden strings."""

import json

from parity import ROOT
from parity_groundingdino import VOCABULARY

from minisam_glue.clipseg.tokenizer import CLIPTokenizer
from minisam_glue.grounding_dino.tokenizer import WordPieceTokenizer

MERGES = ROOT / "golden" / "tokenizers" / "bpe_simple_vocab_16e6.txt.gz"
TOKENIZERS = {"bert-base-uncased": (WordPieceTokenizer, VOCABULARY), "clip": (CLIPTokenizer, MERGES)}


def run(golden, device, dtype):
    kind, file = TOKENIZERS[golden.meta["case"]]
    tokenizer = kind.load(file)
    return {"ids": json.dumps([tokenizer.encode(text) for text in golden.meta["texts"]])}
