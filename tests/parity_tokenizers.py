"""Our tokenizers on the golden strings."""
import json

from minisam_glue.grounding_dino.tokenizer import WordPieceTokenizer
from parity_groundingdino import VOCABULARY


def run(golden, device, dtype):
    encode = {"bert-base-uncased": bert}[golden.meta["case"]]()
    return {"ids": json.dumps([encode(text) for text in golden.meta["texts"]])}


def bert():
    return WordPieceTokenizer.load(VOCABULARY).encode
