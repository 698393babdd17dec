"""WordPiece tokenizer of uncased BERT: text -> token ids and back.

Paper: Devlin et al., arXiv 1810.04805; the rules are those of google-research/bert in the form that transformers'
BertTokenizer gave them, which Grounding DINO was trained with: all characters of Unicode's class C are dropped, and a
word has at most 100 characters, not 200. The vocabulary is a text file with one token a line, the line number being
the id; it comes with the weights. Left out: padding, truncation and sentence pairs, which the detector does not need.
"""

import re
import unicodedata
from pathlib import Path

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
MAX_WORD = 100  # characters; a longer word is [UNK] as a whole
# First and last code point of the CJK ideograph blocks: every such character is a word of its own.
CJK = (
    (0x4E00, 0x9FFF),
    (0x3400, 0x4DBF),
    (0x20000, 0x2A6DF),
    (0x2A700, 0x2B73F),
    (0x2B740, 0x2B81F),
    (0x2B820, 0x2CEAF),
    (0xF900, 0xFAFF),
    (0x2F800, 0x2FA1F),
)
# Spaces that decoding removes again, in the order in which they are looked for: transformers' clean_up_tokenization.
CLEAN_UP = (
    (" .", "."),
    (" ?", "?"),
    (" !", "!"),
    (" ,", ","),
    (" ' ", "'"),
    (" n't", "n't"),
    (" 'm", "'m"),
    (" 's", "'s"),
    (" 've", "'ve"),
    (" 're", "'re"),
)


def _clean(c: str) -> str:
    """Drop control characters, make every space a plain one, set CJK characters apart."""
    category = unicodedata.category(c)
    if c in "\t\n\r" or category == "Zs":
        return " "
    if c == "\ufffd" or category.startswith("C"):
        return ""
    return f" {c} " if any(first <= ord(c) <= last for first, last in CJK) else c


def _is_punctuation(c: str) -> bool:
    """Unicode punctuation, and every ASCII character that is neither letter, digit nor space."""
    ascii_symbol = "!" <= c <= "/" or ":" <= c <= "@" or "[" <= c <= "`" or "{" <= c <= "~"
    return ascii_symbol or unicodedata.category(c).startswith("P")


def split_words(text: str) -> list[str]:
    """Lower-case words without accents; punctuation and CJK characters stand alone."""
    text = unicodedata.normalize("NFC", "".join(map(_clean, text)))
    text = "".join(c.lower() for c in text)  # one by one: the last letter of a word is no exception (Greek sigma)
    words = []
    for word in text.split():
        bare = "".join(c for c in unicodedata.normalize("NFD", word) if unicodedata.category(c) != "Mn")
        words += "".join(f" {c} " if _is_punctuation(c) else c for c in bare).split()
    return words


class WordPieceTokenizer:
    """Ids of uncased BERT. `encode` adds [CLS] and [SEP]; `pieces` is the bare text."""

    def __init__(self, tokens: list[str]):
        """`tokens`: the vocabulary in the order of its ids. ValueError if a special token is missing."""
        missing = [token for token in SPECIAL if token not in tokens]
        if missing:
            raise ValueError(f"the vocabulary lacks {', '.join(missing)}: is it BERT's vocab.txt, one token a line?")
        self.tokens = tokens
        self.ids = {token: i for i, token in enumerate(tokens)}
        self.cls, self.sep, self.unknown = self.ids["[CLS]"], self.ids["[SEP]"], self.ids["[UNK]"]
        self.known_words: dict[str, list[int]] = {}

    @classmethod
    def load(cls, path: str | Path) -> "WordPieceTokenizer":
        """Read vocab.txt (UTF-8). ValueError if a special token is missing."""
        return cls(Path(path).read_text(encoding="utf-8").rstrip("\n").split("\n"))

    def __len__(self) -> int:
        return len(self.tokens)

    def encode(self, text: str) -> list[int]:
        """Ids with [CLS] and [SEP]; special tokens that are spelt out in the text become their ids."""
        ids = [self.cls]
        for part in re.split("(" + "|".join(map(re.escape, SPECIAL)) + ")", text):
            ids += [self.ids[part]] if part in SPECIAL else self.pieces(part)
        return ids + [self.sep]

    def pieces(self, text: str) -> list[int]:
        """Ids of the text alone: no special token is added, and none is recognised in it."""
        return [i for word in split_words(text) for i in self.word_pieces(word)]

    def word_pieces(self, word: str) -> list[int]:
        """Greedy longest match first; pieces after the first are spelt ##piece in the vocabulary."""
        ids = self.known_words.get(word)
        if ids is None:
            ids = self._match(word)
            if len(self.known_words) > 100_000:
                self.known_words.clear()
            self.known_words[word] = ids
        return ids  # not looked up again: another thread may have cleared the table

    def _match(self, word: str) -> list[int]:
        if len(word) > MAX_WORD:
            return [self.unknown]
        ids, start = [], 0
        while start < len(word):
            prefix = "##" if start else ""
            end = next((e for e in range(len(word), start, -1) if prefix + word[start:e] in self.ids), None)
            if end is None:
                return [self.unknown]
            ids.append(self.ids[prefix + word[start:end]])
            start = end
        return ids

    def join(self, ids: list[int]) -> str:
        """Tokens with spaces between them, ## pieces glued to what stands before."""
        return " ".join(self.tokens[i] for i in ids).replace(" ##", "")

    def decode(self, ids: list[int]) -> str:
        """`join`, then English punctuation closed up: "it ' s a cat ." -> "it's a cat."."""
        text = self.join(ids)
        for spaced, closed in CLEAN_UP:
            text = text.replace(spaced, closed)
        return text
