"""The official way to name a box: the words whose similarity passes a threshold, whatever phrase they are of.

It can merge phrases, cut words and return "" (which is why the detector scores whole phrases instead);
it is here for those who compare. Behaviour: groundingdino/util/inference.py of IDEA-Research/GroundingDINO.
"""

from bisect import bisect_left

from torch import Tensor

from minisam_glue.grounding_dino.tokenizer import WordPieceTokenizer


def preprocess_caption(caption: str) -> str:
    """Lower case, stripped, ending in a full stop."""
    caption = caption.lower().strip()
    return caption if caption.endswith(".") else caption + "."


def decode_words(
    similarity: Tensor, ids: list[int], tokenizer: WordPieceTokenizer, threshold: float, left: int = 0, right: int = 255
) -> str:
    """Words strictly between two columns with similarity (L,), after the sigmoid, above the threshold."""
    passing = (similarity > threshold).nonzero()[:, 0].tolist()
    return tokenizer.decode([ids[i] for i in passing if left < i < right]).replace(".", "")


def decode_best_phrase(similarity: Tensor, ids: list[int], tokenizer: WordPieceTokenizer, threshold: float) -> str:
    """As `decode_words`, but only between the separators on either side of the best token."""
    ends = [i for i, token in enumerate(ids) if token in (tokenizer.cls, tokenizer.sep, tokenizer.ids["."])]
    right = bisect_left(ends, int(similarity.argmax()))
    # At [CLS] itself, `right - 1` is the last separator: an empty range, hence "".
    return decode_words(similarity, ids, tokenizer, threshold, ends[right - 1], ends[right])


def predict(
    logits: Tensor,
    boxes: Tensor,
    caption: str,
    tokenizer: WordPieceTokenizer,
    box_threshold: float,
    text_threshold: float,
    remove_combined: bool = False,
) -> tuple[Tensor, Tensor, list[str]]:
    """Raw logits (Q, L) and boxes (Q, 4) -> kept boxes (n, 4), scores (n,) and words, in the order of the queries."""
    similarity = logits.sigmoid()
    scores = similarity.amax(1)
    keep = scores > box_threshold
    ids = tokenizer.encode(preprocess_caption(caption))
    decode = decode_best_phrase if remove_combined else decode_words
    return boxes[keep], scores[keep], [decode(row, ids, tokenizer, text_threshold) for row in similarity[keep]]


def phrases_to_classes(phrases: list[str], classes: list[str]) -> list[int | None]:
    """For each phrase the first class that it contains as a substring."""
    return [next((i for i, name in enumerate(classes) if name in phrase), None) for phrase in phrases]
