"""Masks over a frozen bank: what of it each profile chooses, in every block and on both sides."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from lightning_pelt.anatomy import Site
from lightning_pelt.profiles.bank import BankTensors
from lightning_pelt.submodule import Removable, Submodule

Kind = Literal["hard", "soft"]


class Choice(NamedTuple):
    """What the rows of a batch choose.

    Attributes:
        masks: (U, L, 2, N), of the U profiles among them.
        norms: of their bottlenecks, (U or 1, L, 2, b), or None.
        inverse: (B,), the place of each row's profile among the U.
        numbers: of these profiles in the plan; empty for profiles that come from a store.
        heads: of profiles from a store, (U, C, d + 1), where they have their own.
    """

    masks: Tensor
    norms: Tensor | None
    inverse: Tensor
    numbers: Sequence[int] = ()
    heads: Tensor | None = None


class Masks(Submodule):
    r"""Mask logits of all profiles; owned once, at the root (X-PEFT, arXiv 2401.16137).

    Soft masks are :math:`s \operatorname{softmax}(\theta / \tau)`. Hard masks are
    :math:`s H(\theta)`, with H one at the k largest logits and zero elsewhere, and the gradient of
    :math:`s k \operatorname{softmax}(\theta / \tau)`, which reaches every logit. Ties go to the
    lower index.

    A profile's logits (L, 2, N) are a parameter of their own: a profile that is absent from a batch
    has no gradient and so does not move, whatever the optimizer remembers.

    Args:
        profiles: their number P.
        sites: number L of places with a mask.
        size: number N of adapters in the bank.
        k: adapters that a hard mask chooses; None for soft masks.
        bottleneck: width b of the norm, see ``norm``.
        norm: a norm in the bottleneck that is ``shared`` or each ``profile``'s own, or None.
    """

    transient = ("rows", "choice")

    def __init__(
        self,
        *,
        profiles: int,
        sites: int,
        size: int,
        k: int | None,
        scale: float,
        temperature: float,
        noise: float,
        init_std: float,
        bottleneck: int,
        norm: Literal["shared", "profile"] | None,
    ) -> None:
        super().__init__()
        self.k, self.scale, self.temperature, self.noise = k, scale, temperature, noise
        self.sites: tuple[Site, ...] = ()
        self.runners: list[str] = []
        self.bank: Any = None
        self.rows: Tensor | None = None  # the profile of each row of the forward in flight
        self.fixed: Choice | Tensor | None = None
        self.choice: Choice | None = None
        self.logits = nn.ParameterList(
            init_std * torch.randn(sites, 2, size) for _ in range(profiles)
        )
        start = torch.stack([torch.ones(sites, bottleneck), torch.zeros(sites, bottleneck)], 1)
        self.own_norms = norm == "profile"
        count = {None: 0, "shared": 1, "profile": profiles}[norm]
        self.norms = nn.ParameterList(start.clone() for _ in range(count))

    def place(self, sites: Sequence[Site], runners: Sequence[str], bank: BankTensors) -> None:
        """Say which sites of which stacks the masks are for, and over which bank."""
        self.sites, self.runners, self.bank = tuple(sites), list(runners), bank

    def install(self, model: nn.Module) -> list[Removable]:
        return [
            model.register_forward_pre_hook(self._take, with_kwargs=True),
            *(
                model.get_submodule(path).register_forward_pre_hook(self._choose)
                for path in self.runners
            ),
        ]

    def _take(self, module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        self.rows = kwargs.get("profile")
        return args, {name: value for name, value in kwargs.items() if name != "profile"}

    def _choose(self, module: nn.Module, args: tuple) -> None:
        # Before the first block, so outside of what activation checkpointing replays.
        if isinstance(self.fixed, Choice):
            self.choice = self.fixed
            return
        rows = self.rows if self.rows is not None else self.fixed
        if rows is None and len(self.logits) > 1:
            raise ValueError(
                f"the plan has {len(self.logits)} profiles and the batch does not say whose its "
                "rows are: pass profile=(B,) to the model, as ProfileDataModule's batches do, or "
                "use `with profiles_of(model, rows):`"
            )
        self.choice = self.chosen(rows)

    def chosen(self, rows: Tensor | None) -> Choice:
        """The masks of the profiles in ``rows`` (B,); None is the only profile, for all rows.

        Raises:
            ValueError: there is no profile of that number.
        """
        device = self.logits[0].device
        if rows is None:
            numbers, inverse = [0], torch.zeros(1, dtype=torch.long, device=device)
        else:
            present, inverse = torch.unique(rows.to(device), return_inverse=True)
            numbers = present.tolist()
        if numbers[0] < 0 or numbers[-1] >= len(self.logits):
            raise ValueError(
                f"the batch has profile number {numbers[-1] if numbers[0] >= 0 else numbers[0]}, "
                f"and the plan has {len(self.logits)} profiles, numbered from 0: set "
                "XPEFT(profiles=...) to their number"
            )
        masks = self.of(torch.stack([self.logits[number] for number in numbers]))
        if not len(self.norms):
            return Choice(masks, None, inverse, numbers)
        norms = [self.norms[number] for number in (numbers if self.own_norms else [0])]
        return Choice(masks, torch.stack(norms), inverse, numbers)

    def of(self, logits: Tensor) -> Tensor:
        """Masks of logits, (..., N) -> (..., N), scale included; noise in training only."""
        logits = logits.float()
        if self.training and self.noise:
            uniform = torch.rand_like(logits).clamp_(1e-9, 1 - 1e-7)
            logits = logits - self.noise * torch.log(-torch.log(uniform))
        soft = torch.softmax(logits / self.temperature, -1)
        if self.k is None:
            return self.scale * soft
        hard = picks(logits, self.k).to(soft.dtype)
        return self.scale * (hard + self.k * (soft - soft.detach()))


def picks(logits: Tensor, k: int) -> Tensor:
    """True at the k largest logits of each row, (..., N) -> (..., N); ties to the lower index."""
    order = torch.sort(logits.detach(), stable=True, dim=-1, descending=True).indices[..., :k]
    return torch.zeros_like(logits, dtype=torch.bool).scatter_(-1, order, True)


def masks_of(model: nn.Module) -> Masks:
    """The masks on ``model``.

    Raises:
        ValueError: it has none, or several.
    """
    found = [module for module in model.modules() if isinstance(module, Masks)]
    if len(found) != 1:
        raise ValueError(
            f"{type(model).__name__} holds {len(found)} sets of profiles, and one is needed: "
            "attach a plan with one XPEFT method"
        )
    return found[0]


@contextmanager
def profiles_of(model: nn.Module, rows: Tensor | Sequence[int] | Choice) -> Iterator[None]:
    """Say whose the rows are of every forward inside, where they cannot be passed: ``generate``."""
    masks = masks_of(model)
    before = masks.fixed
    masks.fixed = rows if isinstance(rows, Choice) else torch.as_tensor(rows)
    try:
        yield
    finally:
        masks.fixed = before
