"""(IA)3: a vector for each site here, and one vector per module in PEFT.

Where the sites here are slices of a fused projection, the vector of the module is one elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_pelt.attach.attachment import Attachment
from lightning_pelt.exchange.peft.gates import factor
from lightning_pelt.exchange.peft.lora import width_of
from lightning_pelt.methods.submodule import Submodule


@dataclass(frozen=True)
class Vector:
    """The vector of one module.

    Attributes:
        values: (d_in,) where it scales the input, (d_out,) where it scales the output.
        on_input: whether it scales the input: a feed-forward module of PEFT.
    """

    values: Tensor
    on_input: bool

    @property
    def tensor(self) -> Tensor:
        """In the shape of PEFT: (1, d_in) for inputs, (d_out, 1) for outputs."""
        return self.values[None] if self.on_input else self.values[:, None]


def vector_of(submodule: Any) -> tuple[str, Vector, Tensor | None]:
    """The key, the vector and the rows of one submodule; a constant gate is folded in."""
    site, gate = submodule.site, factor(submodule.gate, 1.0)
    values = submodule.vector.detach()
    if gate != 1:
        values = 1 + gate * (values - 1)
    return site.path, Vector(values, submodule.on_input), submodule.output_rows.rows


def vectors_of(attachment: Attachment, submodules: Iterable[Submodule]) -> dict[str, Vector]:
    """One vector for each layer, by path.

    Raises:
        ValueError: a layer has vectors on its input and on its output.
    """
    found: dict[str, Vector] = {}
    for path, vector, rows in map(vector_of, submodules):
        whole = vector.values
        if rows is not None:
            width = width_of(attachment.model.get_submodule(path))
            whole = whole.new_ones(width).index_copy(0, rows, whole)
        before = found.get(path, Vector(torch.ones_like(whole), vector.on_input))
        if before.on_input != vector.on_input:
            raise ValueError(
                f"{path} has vectors on its input and on its output, and in PEFT's format a module "
                "has one of them: leave one out of IA3(sites=...)"
            )
        found[path] = Vector(before.values * whole, vector.on_input)
    return found


def feedforward_names(vectors: Mapping[str, Vector], names: Sequence[str] | str) -> Any:
    """``feedforward_modules``: those of ``names``, the ``target_modules``, that scale inputs.

    PEFT takes every target that ends with one of the names for a feed-forward module. Where that
    is not exact, the answer is None, and the targets have to be full paths.
    """
    inner = [path for path, vector in vectors.items() if vector.on_input]
    if isinstance(names, str):
        return "(" + "|".join(path.replace(".", r"\.") for path in inner) + ")" if inner else []
    chosen = [name for name in names if any(path.endswith(name) for path in inner)]
    wrong = [p for p in vectors if p not in inner and any(p.endswith(name) for name in chosen)]
    return None if wrong else chosen


@torch.no_grad()
def set_vector(submodule: Any, values: Tensor) -> None:
    """Overwrite the vector of a submodule."""
    submodule.vector.copy_(values)


def keys_of(submodule: Any) -> Iterator[str]:
    """The path of the layer of one submodule."""
    yield submodule.site.path
