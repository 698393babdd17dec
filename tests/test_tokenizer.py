"""The WordPiece tokenizer against the reference."""

import json

import parity
import pytest
from parity_groundingdino import VOCABULARY

from minisam_glue.grounding_dino.tokenizer import WordPieceTokenizer

GOLDEN = parity.ROOT / "golden" / "tokenizers" / "bert-base-uncased.json"
CASES = json.loads(GOLDEN.read_text(encoding="utf-8"))["cases"]


@pytest.fixture(scope="module")
def tokenizer():
    return WordPieceTokenizer.load(VOCABULARY)


@pytest.mark.parametrize("case", CASES, ids=lambda case: ascii(case["text"][:30]))
def test_ids_equal_the_reference(tokenizer, case):
    assert tokenizer.encode(case["text"]) == case["ids"]


def test_parity_runner_reads_the_tokenizer_file():
    rows, ok = parity.run_file(GOLDEN)
    assert ok and len(rows) == 1


def test_special_tokens_are_recognised_in_text_but_not_in_phrases(tokenizer):
    assert tokenizer.encode("a [SEP]") == [101, 1037, 102, 102]
    assert tokenizer.sep not in tokenizer.pieces("a [SEP]")


def test_text_comes_back_from_its_ids(tokenizer):
    text = "it's a skateboarding cat, isn't it?"
    assert tokenizer.decode(tokenizer.pieces(text.upper())) == text


def test_words_of_more_than_100_characters_are_unknown(tokenizer):
    assert tokenizer.pieces("a" * 101) == [tokenizer.unknown]
    assert tokenizer.unknown not in tokenizer.pieces("a" * 100)


def test_a_file_that_is_no_vocabulary_is_refused(tmp_path):
    path = tmp_path / "vocab.txt"
    path.write_text("[PAD]\n[UNK]\na\n")
    with pytest.raises(ValueError, match=r"lacks \[CLS\], \[SEP\]"):
        WordPieceTokenizer.load(path)
