"""The part of a model card that is generated, between two marks; text around it is kept."""

from __future__ import annotations

import hashlib
import re

END = "<!-- lightning_pelt: end -->"
_MARKED = re.compile(
    r"<!-- lightning_pelt: begin ([0-9a-f]{64})[^\n]*-->\r?\n(.*?)" + re.escape(END), re.DOTALL
)
_BEGIN = re.compile(r"<!-- lightning_pelt: begin")


def marked(text: str) -> str:
    """``text`` between the marks; the first one has the digest of it.

    Example:
        >>> marked("A card.").split("\\n")[1:]
        ['A card.', '<!-- lightning_pelt: end -->']
    """
    note = "written by push_to_hub, text outside the marks is kept"
    return f"<!-- lightning_pelt: begin {_digest(text)}: {note} -->\n{text.strip()}\n{END}"


def put_section(card: str, text: str, *, replace: bool = False) -> str:
    """The text of a card with a new generated section in the place of the old one, or at its end.

    Args:
        card: the card without metadata.
        text: of the section.
        replace: replace the old section although somebody has edited it.

    Raises:
        ValueError: somebody has edited the old section, or removed one of its marks.

    Example:
        >>> "My own words" in put_section("My own words", "A card.")
        True
    """
    found = _MARKED.findall(card)
    remedy = (
        "move that text outside the marks, so that it is kept, or give replace_card=True to "
        "replace it"
    )
    if len(found) != len(_BEGIN.findall(card)) or len(found) > 1:
        raise ValueError(
            "the model card on the hub has a mark `lightning_pelt: begin` without its end, or "
            "several: remove the generated section and its marks"
        )
    if not found:
        return f"{card.rstrip()}\n\n{marked(text)}\n".lstrip("\n")
    digest, old = found[0]
    if digest != _digest(old) and not replace:
        raise ValueError(f"somebody has edited the generated section of the model card: {remedy}")
    return _MARKED.sub(lambda _: marked(text), card)


def _digest(text: str) -> str:
    """Independent of line ends and of space around the text."""
    return hashlib.sha256("\n".join(text.strip().splitlines()).encode()).hexdigest()
