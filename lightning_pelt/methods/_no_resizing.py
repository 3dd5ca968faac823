"""Refuses to resize the vocabulary of a model while something is attached to its embeddings."""

from __future__ import annotations

from typing import Any

from torch import nn

RESIZE = "resize_token_embeddings"


class NoResizing:
    """Replaces ``resize_token_embeddings`` of a model, which would replace the embeddings too.

    Args:
        model: is changed in place.
        name: of the method that is attached to its embeddings.
    """

    def __init__(self, model: nn.Module, name: str) -> None:
        self.model, self.name = model, name
        self.before = vars(model).get(RESIZE)
        model.__dict__[RESIZE] = self

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise ValueError(
            f"{self.name!r} is attached to the embeddings, which resize_token_embeddings replaces: "
            "resize before attach; or detach(model), resize, and attach again"
        )

    def remove(self) -> None:
        own, top = self.model.__dict__, self.model.__dict__.get(RESIZE)
        if top is self and self.before is None:
            del own[RESIZE]
        elif top is self:
            own[RESIZE] = self.before
        while isinstance(top, NoResizing):  # those that were attached later stay
            if top.before is self:
                top.before = self.before
            top = top.before
