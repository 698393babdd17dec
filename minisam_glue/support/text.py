"""Text from elsewhere, such as names of files, labels and answers of servers, as it may be shown to people."""


def printable(text: str) -> str:
    """The text with whatever is no letter or sign escaped: control characters must not steer a terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def shortened(text: str, most: int = 60) -> str:
    """At most so many letters of a text, for a message."""
    return text if len(text) <= most else text[: most - 3] + "..."


def one_line(text: object) -> str:
    """Any text on one line, printable, with single spaces between its words."""
    return printable(" ".join(str(text).split()))
