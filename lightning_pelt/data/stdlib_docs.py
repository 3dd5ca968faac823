"""A topic data set from the running Python: the chapter of a docstring."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset

from lightning_pelt.data.text_base import TextDataModule

# Chapters of the library reference, and modules of each that can be imported without side effects.
CHAPTERS = {
    "text": "string re difflib textwrap unicodedata stringprep readline rlcompleter",
    "data types": "datetime zoneinfo calendar collections heapq bisect array weakref types copy "
    "pprint reprlib enum graphlib",
    "mathematics": "numbers math cmath decimal fractions random statistics",
    "functional": "itertools functools operator",
    "files": "pathlib os.path fileinput stat filecmp tempfile glob fnmatch linecache shutil",
    "persistence": "pickle copyreg shelve marshal dbm sqlite3",
    "compression": "zlib gzip bz2 lzma zipfile tarfile",
    "file formats": "csv configparser tomllib netrc plistlib",
    "cryptography": "hashlib hmac secrets",
    "operating system": "os io time argparse getopt logging logging.handlers getpass curses "
    "platform errno ctypes",
    "concurrency": "threading multiprocessing multiprocessing.pool multiprocessing.managers "
    "concurrent.futures subprocess sched queue contextvars",
    "networking": "asyncio socket ssl select selectors signal mmap",
    "internet data": "email email.message mimetypes base64 binascii quopri json mailbox",
    "markup": "html html.parser xml.etree.ElementTree xml.dom xml.dom.minidom xml.sax",
    "internet protocols": "webbrowser wsgiref urllib.request urllib.parse urllib.error "
    "http.client http.server http.cookies ftplib poplib imaplib smtplib uuid socketserver "
    "xmlrpc.client ipaddress",
    "multimedia": "wave colorsys",
    "internationalisation": "gettext locale",
    "development": "typing pydoc doctest unittest unittest.mock",
    "debugging": "bdb faulthandler pdb timeit trace tracemalloc cProfile pstats",
    "runtime": "sys sysconfig builtins warnings dataclasses contextlib abc atexit traceback gc "
    "inspect site",
    "importing": "zipimport pkgutil modulefinder runpy importlib importlib.resources "
    "importlib.metadata",
    "language": "ast symtable token keyword tokenize tabnanny pyclbr py_compile compileall dis "
    "pickletools",
}


class StdlibDocs(TextDataModule):
    """Topic classification of docstrings: English text without a download.

    A row is the first paragraph of a docstring in Python's standard library, if it has five words
    or more. The label is the chapter of the library reference. There are about 4,300 texts in 16
    chapters, collected in half a second; the texts differ slightly between versions of Python.

    Args:
        backbone: hub id or folder whose tokenizer is used.
        min_rows: drop chapters with fewer texts.
        test_rows: number of rows of the test split.
        dev_rows: number of rows of the dev split.
        data_seed: seed of the choice of the splits.
        **common: see :class:`TextDataModule`.

    Example:
        >>> from lightning_pelt import StdlibDocs
        >>> data = StdlibDocs(min_rows=200, test_rows=100, dev_rows=50)
        >>> "operating system" in data.labels
        True
        >>> len(data.rows("test"))
        100
    """

    def __init__(
        self,
        backbone: str = "sentence-transformers/all-MiniLM-L6-v2",
        *,
        min_rows: int = 100,
        test_rows: int = 600,
        dev_rows: int = 300,
        data_seed: int = 42,
        **common: Any,
    ) -> None:
        super().__init__(backbone, **common)
        self.min_rows = min_rows
        self.test_rows = test_rows
        self.dev_rows = dev_rows
        self.data_seed = data_seed

    @cached_property
    def _collected(self) -> tuple[list[str], list[tuple[str, str]]]:
        rows = collect()
        counts = Counter(chapter for _, chapter in rows)
        kept = [chapter for chapter in CHAPTERS if counts[chapter] >= self.min_rows]
        return kept, [row for row in rows if row[1] in kept]

    @property
    def labels(self) -> list[str]:
        """The chapters with at least ``min_rows`` texts."""
        return self._collected[0]

    def read(self) -> dict[str, Dataset]:
        """Train, dev and test: a random partition by ``data_seed``.

        Raises:
            ValueError: dev and test take all texts.
        """
        labels, rows = self._collected
        held_out = self.dev_rows + self.test_rows
        if held_out >= len(rows):
            raise ValueError(
                f"test_rows {self.test_rows} and dev_rows {self.dev_rows} leave none of the "
                f"{len(rows)} texts for training: lower them, or min_rows"
            )
        order = np.random.default_rng(self.data_seed).permutation(len(rows))
        parts = np.split(order, [self.test_rows, held_out])
        return {
            name: Dataset.from_dict(
                {
                    "text": [rows[i][0] for i in part],
                    "label": [labels.index(rows[i][1]) for i in part],
                }
            )
            for name, part in zip(("test", "dev", "train"), parts, strict=True)
        }

    def encode(self, rows: dict[str, list[Any]], split: str) -> dict[str, list[Any]]:
        """Tokens and the index of the chapter."""
        tokens = self.tokenizer(rows["text"], truncation=True, max_length=self.max_length)
        return dict(tokens) if split == "predict" else {**tokens, "labels": rows["label"]}


def collect() -> list[tuple[str, str]]:
    """Collect ``(text, chapter)`` of the docstrings of the running Python in a new interpreter.

    Raises:
        RuntimeError: the interpreter fails.
    """
    chapters = {chapter: modules.split() for chapter, modules in CHAPTERS.items()}
    script = Path(__file__).with_name("_stdlib_walk.py")
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-X", "utf8", script],
        input=json.dumps(chapters),
        capture_output=True,
        encoding="utf-8",
    )
    if done.returncode:
        raise RuntimeError(f"{sys.executable} could not collect its docstrings:\n{done.stderr}")
    return [(text, chapter) for text, chapter in json.loads(done.stdout)]
