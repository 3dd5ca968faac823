"""The bytes of an attached model's base, before and after it was quantised."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from lightning_pelt.attach.names import plain
from lightning_pelt.utils.quantised import dense_bytes, kinds_of, stored_bytes
from lightning_pelt.utils.text import readable_bytes

if TYPE_CHECKING:
    from lightning_pelt.attach import Attachment


@dataclass(frozen=True)
class BaseBytes:
    """Bytes of the parameters of a base.

    Attributes:
        dense: if none were quantised.
        stored: as they are, with scales.
        kinds: of quantisation; empty if none is.
    """

    dense: int
    stored: int
    kinds: tuple[str, ...] = ()

    def __str__(self) -> str:
        stored = readable_bytes(self.stored)
        if not self.kinds:
            return stored
        return f"{', '.join(self.kinds)}: {readable_bytes(self.dense)} -> {stored}"


def bytes_of_base(attachment: Attachment) -> BaseBytes:
    """Bytes of the parameters that are neither trained nor saved. Shared ones count once.

    Example:
        >>> from lightning_pelt import LoRA, Plan, attach
        >>> from lightning_pelt.testing import tiny_bert
        >>> attachment = attach(tiny_bert(), Plan.uniform(LoRA(r=2)))
        >>> bytes_of_base(attachment).stored == 4 * attachment.backbone_size
        True
    """
    owned = attachment.owned
    named = attachment.model.named_parameters()
    base: list[Tensor] = [tensor for name, tensor in named if plain(name) not in owned]
    return BaseBytes(
        dense=sum(map(dense_bytes, base)),
        stored=sum(map(stored_bytes, base)),
        kinds=tuple(kinds_of(base)),
    )
