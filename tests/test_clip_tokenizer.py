"""The byte-pair tokenizer against the reference."""

import gzip
import json

import parity
import pytest
from parity_tokenizers import MERGES

from minisam_glue.clipseg.tokenizer import CLIPTokenizer, repair, words

CASES = json.loads((parity.ROOT / "golden" / "tokenizers" / "clip.json").read_text(encoding="utf-8"))["cases"]


@pytest.fixture(scope="module")
def tokenizer():
    return CLIPTokenizer.load(MERGES)


@pytest.mark.parametrize("case", CASES, ids=lambda case: ascii(case["text"][:30]))
def test_ids_equal_the_reference(tokenizer, case):
    assert tokenizer.encode(case["text"]) == case["ids"]


def test_every_byte_has_an_id_so_no_text_is_refused(tokenizer):
    assert len(tokenizer.ids) == 49408
    for text in ("\U0010ffff", "\ud7ff\u0378", "a" * 3000, "\x00\x01"):
        assert tokenizer.encode(text)[-1] == tokenizer.ids["<|endoftext|>"]


def test_digits_stand_alone_and_contractions_are_cut_off():
    assert words("they're 12km") == ["they", "'re", "1", "2", "km"]
    assert words("what?'s") == ["what", "?'", "s"]


def test_entities_are_resolved_unless_the_text_may_be_html():
    assert repair("a &amp; b") == "a & b" and repair("<i>&amp;") == "<i>&amp;"
    # As ftfy.fix_text has them: until nothing changes, with a semicolon alone, names in capitals.
    assert repair("&amp;lt; salt &amp;amp; pepper") == "< salt & pepper"
    assert repair("sun&region, 5&times7, on&degree") == "sun&region, 5&times7, on&degree"
    assert (
        repair("&EACUTE;t&eacute; &Eacute; &#233; &#xe9; &nosuch; &#59;") == "\xc9t\xe9 \xc9 \xe9 \xe9 &nosuch; &#59;"
    )


def test_a_file_that_is_no_merge_list_is_refused(tmp_path):
    (tmp_path / "plain.txt").write_text("no gzip")
    with gzip.open(tmp_path / "short.gz", "wt") as file:
        file.write("#version\na b\n")
    for name in ("plain.txt", "short.gz"):
        with pytest.raises(ValueError, match=f"{name} is not CLIP's"):
            CLIPTokenizer.load(tmp_path / name)
