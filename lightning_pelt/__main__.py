"""``python -m lightning_pelt`` is ``lightning-pelt``."""

from lightning_pelt.cli import main

if __name__ == "__main__":
    main()
