"""The tensors of one adapter of AdapterHub, by the place and the name that they have there."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from lightning_pelt.anatomy import Anatomy, Site
from lightning_pelt.exchange.adapterhub.family import Family

IN_BLOCK = re.compile(r"^(.*)\.(adapters|loras|prefix_gates)\.([^.]+)\.(.+)$")
OF_MODEL = re.compile(r"(?:^|\.)(prefix_tunings|prompt_tunings|shared_parameters)\.([^.]+)\.(.+)$")
MANY = 5  # names in a message


class HubTensors:
    """Hands out the tensors of a file and knows which ones nobody asked for.

    Args:
        folder: for messages.
        tensors: by their names in the file.
        family: of the model.
        anatomy: of the model.

    Raises:
        ValueError: the file has tensors of several adapters, tensors with NaN or infinity, or two
            different tensors for one place.
    """

    def __init__(
        self, folder: Path, tensors: Mapping[str, Tensor], family: Family, anatomy: Anatomy
    ) -> None:
        self.folder, self.family, self.anatomy = folder, family, anatomy
        self.found: dict[tuple, Tensor] = {}
        self.unknown: list[str] = []
        self.taken: set[tuple] = set()
        names = set()
        for key, tensor in tensors.items():
            _refuse_unusable(folder, key, tensor)
            place, name = self._place(key)
            if place is None:
                self.unknown.append(key)
                continue
            names.add(name)
            known = self.found.setdefault(place, tensor)
            if known is not tensor and not torch.equal(known, tensor):
                raise ValueError(f"{folder} has two different tensors for {key}: save it again")
        if len(names) > 1:
            raise ValueError(
                f"{folder} has tensors of several adapters ({', '.join(sorted(names))}): save each "
                "with save_adapter(folder, name)"
            )

    def _place(self, key: str) -> tuple[tuple | None, str]:
        """Where a tensor belongs, and the name of its adapter."""
        if match := OF_MODEL.search(key):
            return (match[1], match[3]), match[2]
        match = IN_BLOCK.match(key)
        located = None if match is None else self.family.locate(match[1], self.anatomy)
        if match is None or located is None:
            return None, ""
        return (match[2], *located, match[4]), match[3]

    def at(self, collection: str, site: Site, name: str, *, role: str | None = None) -> Tensor:
        """The tensor ``name`` of a site.

        Args:
            collection: ``adapters``, ``loras`` or ``prefix_gates``.
            site: here.
            name: what follows the adapter's name in the file.
            role: where the file has it, if not at the role of the site.

        Raises:
            ValueError: the file does not have it.
        """
        where = role or site.role
        key = (collection, site.stack, site.block, where, name)
        place = f"{where} in block {site.block} of the {site.stack}"
        return self._take(key, f"{collection}.*.{name} of {place}")

    def of_model(self, collection: str, name: str) -> Tensor:
        """The tensor ``name`` that several blocks share.

        Raises:
            ValueError: the file does not have it.
        """
        return self._take((collection, name), f"{collection}.*.{name}")

    def _take(self, key: tuple, what: str) -> Tensor:
        if key not in self.found:
            raise ValueError(
                f"{self.folder} lacks {what}, which its configuration asks for: the file is "
                "incomplete, or of a model with more blocks"
            )
        self.taken.add(key)
        return self.found[key]

    def refuse_rest(self) -> None:
        """Raise if tensors are left that nobody asked for.

        Raises:
            ValueError: the message names them.
        """
        left = [".".join(map(str, key)) for key in self.found if key not in self.taken]
        left += self.unknown
        if left:
            more = f" and {len(left) - MANY} more" if len(left) > MANY else ""
            raise ValueError(
                f"{self.folder} has tensors that its configuration does not explain, or that "
                f"belong to blocks or modules that {self.anatomy.model_type} does not have: "
                f"{', '.join(left[:MANY])}{more}. Load it on the model that it was trained on"
            )


def _refuse_unusable(folder: Path, key: str, tensor: Tensor) -> None:
    if not tensor.is_floating_point():
        raise ValueError(f"{folder}: {key} has the dtype {tensor.dtype}, expected floats")
    if not tensor.isfinite().all():
        raise ValueError(
            f"{folder}: {key} contains NaN or infinity: the run that saved it had diverged"
        )
