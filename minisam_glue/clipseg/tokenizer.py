"""Byte-pair tokenizer of CLIP: text -> token ids.

Sennrich et al., arXiv 1508.07909; CLIP, arXiv 2103.00020, section 2.4; rules and merges are those of
openai/CLIP. The merges are a gzipped text file, bpe_simple_vocab_16e6.txt.gz, that comes with the weights.
Of the text repair that CLIP leaves to the library ftfy, what ordinary text needs is here; undoing wrong
decodings (mojibake) is left out. HTML entities are resolved as ftfy does it for the slow CLIPTokenizer of
transformers 4; openai/CLIP resolves them twice more, and the tokenizer of transformers 5 repairs nothing.
"""

import gzip
import html
import re
import unicodedata
import zlib
from functools import lru_cache
from html.entities import html5
from pathlib import Path

MERGES = 49152 - 256 - 2  # CLIP uses so many of the file's lines
LONGEST = 1 << 23  # characters of the file that are read: it has 3.2 million, and another may unpack to any number
START, END = "<|startoftext|>", "<|endoftext|>"
CONTRACTIONS = ("'re", "'ve", "'ll", "'s", "'t", "'m", "'d")
LIGATURES = str.maketrans(
    {
        "ĳ": "ij",
        "Ĳ": "IJ",
        "ŉ": "ʼn",
        "Ǆ": "DŽ",
        "ǅ": "Dž",
        "ǆ": "dž",
        "Ǉ": "LJ",
        "ǈ": "Lj",
        "ǉ": "lj",
        "Ǌ": "NJ",
        "ǋ": "Nj",
        "ǌ": "nj",
        "Ǳ": "DZ",
        "ǲ": "Dz",
        "ǳ": "dz",
        "ﬀ": "ff",
        "ﬁ": "fi",
        "ﬂ": "fl",
        "ﬃ": "ffi",
        "ﬄ": "ffl",
        "ﬅ": "ſt",
        "ﬆ": "st",
    }
)
QUOTES = str.maketrans(
    {**dict.fromkeys("\u02bc\u2018\u2019\u201a\u201b", "'"), **dict.fromkeys("\u201c\u201d\u201e\u201f", '"')}
)
ENTITIES = re.compile("&(#?[0-9A-Za-z]{1,24};)")
ESCAPES = re.compile("\x1b\\[((?:\\d|;)*)([a-zA-Z])")  # colours and cursor moves of terminals
CONTROLS = re.compile("[\x00-\x08\x0b\x0e-\x1f\x7f\u206a-\u206f\ufeff\ufff9-\ufffc]")
BREAKS = re.compile("\r\n|[\r\x85\u2028\u2029]")


def repair(text: str) -> str:
    """Entities, ligatures, full-width letters, curled quotes, line breaks and control characters made plain, NFC.

    Repeated until nothing changes: "&amp;lt;" becomes "<".
    """
    may_be_html, before = "<" in text, None
    while text != before:
        before = text
        if not may_be_html:  # else it may mean its entities
            text = ENTITIES.sub(entity, text)
        text = ESCAPES.sub("", text).translate(LIGATURES)
        text = "".join(unicodedata.normalize("NFKC", c) if is_wide_form(c) else c for c in text)
        text = unicodedata.normalize("NFC", CONTROLS.sub("", BREAKS.sub("\n", text.translate(QUOTES))))
    return text


def entity(found: re.Match) -> str:
    """The text of an HTML entity; of a name in capitals the capital letter, of an unknown one itself."""
    name = found[1]
    if name.startswith("#"):
        plain = html.unescape(found[0])
        return found[0] if ";" in plain else plain
    small = name.lower()
    if name not in html5 and name == small.upper() and small in html5 and html.unescape(found[0]) == found[0]:
        return html5[small].upper()
    return html5.get(name, found[0])


def is_wide_form(c: str) -> bool:
    """Full-width Latin, half-width Japanese and Korean, and the ideographic space."""
    return c == "\u3000" or "\uff01" <= c <= "\uffef"


def words(text: str) -> list[str]:
    """Cut into runs of letters, single digits, runs of other characters, English contractions and special tokens."""
    found, i = [], 0
    while i < len(text):
        piece = next((s for s in (START, END, *CONTRACTIONS) if text.startswith(s, i)), None)
        if piece is None:
            kind, end = kind_of(text[i]), i + 1
            while kind != "N" and end < len(text) and kind_of(text[end]) == kind:
                end += 1
            piece = text[i:end]
        if not piece.isspace():
            found.append(piece)
        i += len(piece)
    return found


@lru_cache(maxsize=4096)
def kind_of(c: str) -> str:
    """L letter, N number, S space, O other."""
    category = unicodedata.category(c)[0]
    return "S" if c.isspace() else category if category in "LN" else "O"


def byte_letters() -> list[str]:
    """A printable letter for each byte: itself where it is printable in Latin-1, else one from U+0100 on."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = iter(range(256, 512))
    return [chr(b) if b in printable else chr(next(others)) for b in range(256)]


class CLIPTokenizer:
    """Text -> ids, with the start and the end token around it. merges: pairs, the most frequent first."""

    def __init__(self, merges: list[tuple[str, str]]):
        self.letters = byte_letters()
        # Ids: the printable bytes in their order, then the others; the same at the end of a word; merges; specials.
        alphabet = sorted(self.letters, key=lambda letter: (ord(letter) >= 256, letter))
        tokens = [*alphabet, *(letter + "</w>" for letter in alphabet), *("".join(pair) for pair in merges), START, END]
        self.ids = {token: i for i, token in enumerate(tokens)}
        self.ranks = {pair: i for i, pair in enumerate(merges)}

    @classmethod
    def load(cls, path: str | Path) -> "CLIPTokenizer":
        """Load bpe_simple_vocab_16e6.txt.gz. ValueError for another file."""
        try:
            with gzip.open(path, "rt", encoding="utf-8") as file:
                lines = file.read(LONGEST).split("\n")[1 : MERGES + 1]
        except (gzip.BadGzipFile, UnicodeDecodeError, EOFError, zlib.error):
            lines = []
        pairs = [tuple(line.split()) for line in lines]
        if len(pairs) != MERGES or any(len(pair) != 2 for pair in pairs):
            raise ValueError(f"{path} is not CLIP's bpe_simple_vocab_16e6.txt.gz: it must hold {MERGES} merges")
        return cls(pairs)

    def encode(self, text: str) -> list[int]:
        """Any string -> its ids, of any length."""
        text = " ".join(repair(text).split()).lower()
        return [self.ids[START], *(i for word in words(text) for i in self.pieces(word)), self.ids[END]]

    def pieces(self, word: str) -> list[int]:
        """The ids of one word."""
        if word in (START, END):
            return [self.ids[word]]
        letters = [self.letters[b] for b in word.encode("utf-8")]
        return [self.ids[part] for part in self.merge([*letters[:-1], letters[-1] + "</w>"])]

    def merge(self, parts: list[str]) -> list[str]:
        """Join the most frequent pair, everywhere, until no pair is known."""
        while len(parts) > 1:
            best = min(zip(parts, parts[1:]), key=lambda pair: self.ranks.get(pair, MERGES))
            if best not in self.ranks:
                break
            joined, i = [], 0
            while i < len(parts):
                is_pair = tuple(parts[i : i + 2]) == best
                joined.append("".join(best) if is_pair else parts[i])
                i += 2 if is_pair else 1
            parts = joined
        return parts
