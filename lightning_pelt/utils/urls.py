"""URLs without their passwords, for messages and reports."""

from __future__ import annotations

import re

# Up to the last "@" of a word: a password that is not quoted may contain any other character.
_USER = re.compile(r"(://[^\s:/@'\"]*:)[^\s'\"]*@")
_OPTION = re.compile(r"(?i)([?&]\w*(?:password|passwd|pwd|secret|token)=)[^&\s'\"]*")


def masked(text: str) -> str:
    """``text`` with the passwords of all URLs in it replaced by ``***``.

    >>> masked("cannot reach postgresql://ann:se@cret@host/db?sslpassword=x&port=1")
    'cannot reach postgresql://ann:***@host/db?sslpassword=***&port=1'
    """
    return _OPTION.sub(r"\1***", _USER.sub(r"\1***@", text))
