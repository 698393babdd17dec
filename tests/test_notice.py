"""NOTICE: every paper that the code or the documents cite by its arXiv number stands there."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
ARXIV = re.compile(r"\b\d{4}\.\d{5}\b")


def arxiv_numbers(text: str) -> set[str]:
    """The arXiv numbers after the word arXiv in a text, also over the end of a line, or in a link."""
    cited = re.findall(r"arXiv(?:\.org/abs/|[\s#]+)(\d{4}\.\d{5})\b", text, re.IGNORECASE)
    return {number for number in cited if 1 <= int(number[2:4]) <= 12}


def test_every_paper_that_is_cited_stands_in_the_notice():
    sources = [path for package in ("minivit", "minisam_glue") for path in (ROOT / package).rglob("*.py")]
    cited = {
        number: path.relative_to(ROOT)
        for path in [*sources, ROOT / "README.md", ROOT / "RESULTS.md"]
        for number in arxiv_numbers(path.read_text(encoding="utf-8"))
    }
    named = set(ARXIV.findall((ROOT / "NOTICE").read_text(encoding="utf-8")))
    assert len(cited) > 50
    assert {number: path for number, path in cited.items() if number not in named} == {}
