"""Design-space search: races between random designs, run on any number of machines."""

from importlib.util import find_spec

EXTRA = ("optuna", "scipy", "filelock", "psutil")  # packages of the extra `search`


def require_extra() -> None:
    """Check that the packages of the extra ``search`` are installed.

    Recipes can be parsed without them, so ``lightning-pelt search --help`` needs no extra.

    Raises:
        ModuleNotFoundError: a package is missing; the message names it and the command that
            installs it.
    """
    for name in EXTRA:
        if find_spec(name) is None:
            raise ModuleNotFoundError(
                f"a search needs {name}: pip install 'lightning-pelt[search]'", name=name
            )
