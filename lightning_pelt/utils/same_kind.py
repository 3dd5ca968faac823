"""Lightning is published twice: as `lightning.pytorch` and as `pytorch_lightning`."""

from __future__ import annotations

PACKAGES = ("lightning", "pytorch_lightning", "lightning_fabric")


def same_kind(value: object, *kinds: type) -> bool:
    """Whether ``value`` is an instance of one of ``kinds``, under either name of the library.

    Both packages hold the same classes, but as different objects, so ``isinstance`` does not know
    the loggers and callbacks of the other one.

    Args:
        value: a logger, a callback, ...
        kinds: classes of `lightning.pytorch`.
    """
    names = {kind.__name__ for kind in kinds}
    return any(
        cls.__name__ in names and cls.__module__.partition(".")[0] in PACKAGES
        for cls in type(value).__mro__
    )
