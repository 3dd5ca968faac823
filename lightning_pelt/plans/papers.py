"""Plans of papers and baselines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from lightning_pelt.methods import Adapter, LoRA, Prefix
from lightning_pelt.methods.base import Method
from lightning_pelt.methods.config import to_plain
from lightning_pelt.methods.gate import Gate
from lightning_pelt.plans.plan import Group, Plan


class UniPELT(Plan):
    """Gated submodules of several methods in every block (Mao et al., 2022;
    https://arxiv.org/abs/2110.07577).

    Args:
        methods: by default the paper's APL: adapter, prefix and LoRA. The paper's AP is
            ``[Adapter(), Prefix()]``.
        gate: gate of the methods that do not have one.
        norms: whether the norms of the base are trained too.

    Example:
        >>> from lightning_pelt import attach
        >>> from lightning_pelt.testing import tiny_bert
        >>> attachment = attach(tiny_bert(), UniPELT())
        >>> [name for name in attachment.gates if name.startswith("00/")]
        ['00/lora.query', '00/lora.value', '00/prefix', '00/adapter']
    """

    def __init__(
        self,
        methods: Sequence[Method] | None = None,
        gate: Gate | None = None,
        norms: bool = False,
    ) -> None:
        default = Gate() if gate is None else gate
        given = (Adapter(), Prefix(), LoRA()) if methods is None else methods
        gated = [m if m.gate is not None else replace(m, gate=default) for m in given]  # type: ignore[type-var]
        super().__init__([Group(gated)], norms)

    def init_args(self) -> dict[str, Any]:
        """The arguments of the constructor as plain data; the methods have their gates."""
        return {"methods": [to_plain(method) for method in self.methods], "norms": self.norms}


class HeadOnly(Plan):
    """Only the head is trained: a lower baseline for every method.

    Example:
        >>> from lightning_pelt import attach
        >>> from lightning_pelt.testing import tiny_bert
        >>> model = tiny_bert()
        >>> attachment = attach(model, HeadOnly())
        >>> [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        ['classifier.weight', 'classifier.bias']
    """

    def __init__(self) -> None:
        super().__init__()

    def init_args(self) -> dict[str, Any]:
        """No arguments."""
        return {}


class FullFineTuning(HeadOnly):
    """All parameters of the model are trained: the baseline of full fine-tuning.

    Example:
        >>> from lightning_pelt import attach
        >>> from lightning_pelt.testing import tiny_bert
        >>> model = tiny_bert()
        >>> attachment = attach(model, FullFineTuning())
        >>> all(parameter.requires_grad for parameter in model.parameters())
        True
    """

    train_base = True
