"""Searches of the design space: racing over random designs, on any number of machines."""

from importlib.util import find_spec

for _name in ("optuna", "scipy", "filelock"):
    if find_spec(_name) is None:
        raise ModuleNotFoundError(
            f"a search needs {_name}: pip install 'lightning-pelt[search]'", name=_name
        )
