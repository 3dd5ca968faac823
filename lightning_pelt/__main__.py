"""``python -m lightning_pelt`` is ``lightning-pelt``."""

from lightning_pelt.cli.entry import script

if __name__ == "__main__":
    script()
