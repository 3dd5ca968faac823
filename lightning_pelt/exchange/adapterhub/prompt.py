"""Prompts in files of AdapterHub."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from lightning_pelt.anatomy import Anatomy
from lightning_pelt.exchange.adapterhub.family import Family
from lightning_pelt.exchange.adapterhub.hub_prompt import HubPrompt
from lightning_pelt.exchange.adapterhub.pieces import Assignment, Piece, Placed
from lightning_pelt.exchange.adapterhub.settings import Settings
from lightning_pelt.exchange.adapterhub.tensors import HubTensors
from lightning_pelt.plans.plan import Group

COMBINE = {"prefix": False, "prefix_after_bos": True}


def prompt_pieces(settings: Settings, anatomy: Anatomy, name: str, family: Family) -> list[Piece]:
    """The piece of a prompt.

    Raises:
        ValueError: the prompt attends to padding, or is combined with the input in an unknown way.
    """
    if not family.prompts:
        raise settings.refuse(
            "prompt_length",
            f"on {anatomy.model_type} AdapterHub lets the prompt attend to padding, which nothing "
            "does here. Train it again with attach(model, Plan.uniform(Prompt()))",
        )
    if settings["combine"] not in COMBINE:
        raise settings.refuse("combine", f"expected {' or '.join(COMBINE)}")
    after = COMBINE[settings["combine"]]
    method = HubPrompt(length=settings["prompt_length"], behind_first=after, name=name)
    return [PromptPiece(Group([method]))]


@dataclass(frozen=True)
class PromptPiece(Piece):
    """The prompt of the model."""

    def assign(
        self, shared: list[Any], placed: list[Placed], tensors: HubTensors
    ) -> Iterator[Assignment]:
        ((_, (module,)),) = placed
        source = tensors.of_model("prompt_tunings", "prompt_embedding.weight")
        yield Assignment(module.P, source, "the prompt")
