"""The families of transformers, and what each takes: the table in ``docs/families.md``.

``python -m families`` prints the table (from ``tests/``). ``pytest -m nightly`` checks all entries,
and CI the sample of :mod:`families.catalogue`. To add a family, write an entry in the module of its
kind.
"""
