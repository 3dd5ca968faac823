"""What a plan writes down by the path of its class."""

from __future__ import annotations


class Configured:
    """A frozen dataclass of plain data that recipes and checkpoints name by its class.

    A configuration names classes but never makes Python import any: a class outside this package
    must have been imported before it is asked for.
    """
