"""Masks over a frozen bank: the adapters that each profile selects, per block and side."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from lightning_pelt.anatomy import Site
from lightning_pelt.methods.current import Current
from lightning_pelt.methods.submodule import Removable, Submodule, refer
from lightning_pelt.methods.xpeft._ranks import Ranks, stack
from lightning_pelt.methods.xpeft._unfinished import Unfinished
from lightning_pelt.methods.xpeft.bank import BankTensors
from lightning_pelt.methods.xpeft.clipping import clip_per_profile

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

MaskKind = Literal["hard", "soft"]


class SelectedMasks(NamedTuple):
    """The masks of a batch: those of its U distinct profiles, and the profile of each row.

    Attributes:
        masks: (U, L, 2, N), scale included.
        norms: weight and bias of the bottleneck norms, (U or 1, L, 2, b); None without norms.
        inverse: (B,), the index of each row's profile among the U.
        numbers: the numbers of the U profiles in the plan; empty for profiles from a store.
        heads: (U, C, d + 1), for profiles from a store that have their own heads.
        adapters: by site, the adapters that a server has aggregated before; masks are then empty.
        elsewhere: the numbers of profiles that only other processes of a sharded run train.

    Example:
        >>> from lightning_pelt import XPEFT, Plan, RandomBank, attach
        >>> from lightning_pelt.testing import tiny_bert
        >>> model = tiny_bert()
        >>> method = XPEFT(bank=RandomBank(size=8), k=2, bottleneck=4, profiles=3)
        >>> attachment = attach(model, Plan.uniform(method))
        >>> selected = masks_of(model).select(torch.tensor([2, 0, 2]))
        >>> selected.numbers, selected.inverse
        ([0, 2], tensor([1, 0, 1]))
        >>> selected.masks.shape
        torch.Size([2, 2, 2, 8])
    """

    masks: Tensor
    norms: Tensor | None
    inverse: Tensor
    numbers: Sequence[int] = ()
    heads: Tensor | None = None
    adapters: Mapping[int, Any] | None = None
    elsewhere: Sequence[int] = ()


class Masks(Submodule):
    r"""Mask logits of all profiles, owned once by the root (X-PEFT, arXiv 2401.16137).

    Soft masks are :math:`s \operatorname{softmax}(\theta / \tau)`. Hard masks are
    :math:`s H(\theta)`, where H is one at the k largest logits and zero elsewhere, with the
    gradient of :math:`s k \operatorname{softmax}(\theta / \tau)`, which reaches every logit. Of
    equal logits, H selects the one with the lower index.

    The logits (L, 2, N) of each profile are a separate parameter. A profile that is absent from a
    batch has no gradient, so the optimizer does not update it, not even by momentum.

    Args:
        profiles: number of profiles, P.
        sites: number of sites with a mask, L.
        size: number of adapters in the bank, N.
        k: number of adapters that a hard mask selects; None for soft masks.
        scale: factor of the masks, s.
        temperature: temperature of the softmax, tau.
        noise: scale of the Gumbel noise on the logits in training.
        init_std: standard deviation of the initial logits.
        bottleneck: width of the norm, b.
        norm: whether all profiles share the norm in the bottleneck (``shared``) or each has one
            (``profile``); None for no norm.
    """

    temperature: float
    heads: Any  # the ProfileHeads of the same plan, or None

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
        refer(self, heads=None)
        self.sites: tuple[Site, ...] = ()
        self.stack_paths: list[str] = []
        self.bank: Any = None
        self.rows: Current[Tensor | None] = Current("the profile of each row")
        self.override: Current[SelectedMasks | Tensor | None] = Current("a profile", shared=True)
        self.selected: Current[SelectedMasks] = Current("the masks of the profiles", shared=True)
        self.unfinished = Unfinished()
        self.ranks = Ranks()
        self.logits = nn.ParameterList(
            init_std * torch.randn(sites, 2, size) for _ in range(profiles)
        )
        start = torch.stack([torch.ones(sites, bottleneck), torch.zeros(sites, bottleneck)], 1)
        self.own_norms = norm == "profile"
        count = {None: 0, "shared": 1, "profile": profiles}[norm]
        self.norms = nn.ParameterList(start.clone() for _ in range(count))

    def bind(self, sites: Sequence[Site], stack_paths: Sequence[str], bank: BankTensors) -> None:
        """Set the sites of the masks, the paths of the stacks that hold them, and the bank."""
        self.sites, self.stack_paths, self.bank = tuple(sites), list(stack_paths), bank

    def install(self, model: nn.Module) -> list[Removable]:
        return [
            model.register_forward_pre_hook(self._take, with_kwargs=True),
            model.register_forward_hook(self._forget, always_call=True),
            *(
                model.get_submodule(path).register_forward_pre_hook(self._select)
                for path in self.stack_paths
            ),
        ]

    def _take(self, module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        if self.training and len(self.logits) > 1 and torch.is_grad_enabled():
            self.ranks.check(module)
        self.rows.set(kwargs.get("profile"))
        return args, {name: value for name, value in kwargs.items() if name != "profile"}

    @contextmanager
    def trial(self, rows: int) -> Iterator[None]:
        self.override.set(torch.zeros(rows, dtype=torch.long))
        try:
            yield
        finally:
            self.override.clear()

    def _forget(self, module: nn.Module, args: tuple, output: Any) -> None:
        self.rows.clear()  # the base, called by itself, has no rows

    def _select(self, module: nn.Module, args: tuple) -> None:
        # Runs before the first block, outside the part that activation checkpointing recomputes.
        override, rows = self.override.peek(), self.rows.peek()
        if isinstance(override, SelectedMasks):
            self.selected.set(override)
            return
        rows = override if rows is None else rows
        if rows is None and len(self.logits) > 1:
            raise ValueError(
                f"the plan has {len(self.logits)} profiles and the batch does not name the profile "
                "of each row: pass profile=(B,) to the model, as the batches of ProfileDataModule "
                "do, or use `with profiles_of(model, rows):`"
            )
        selected = self.select(rows)
        self.selected.set(selected)
        self.unfinished.add(selected.masks, selected.inverse)

    def of_forward(self) -> SelectedMasks:
        """The masks of the current forward.

        Raises:
            RuntimeError: the model does not run, or activation checkpointing repeats a block of an
                earlier forward with other profiles.
        """
        self.unfinished.check()
        return self.selected.get()

    def select(self, rows: Tensor | None) -> SelectedMasks:
        """The masks of the profiles in ``rows`` (B,).

        Args:
            rows: the number of each row's profile; None if the plan has a single profile.

        Raises:
            ValueError: a number is not that of a profile of the plan.
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
                "XPEFT(profiles=...) to the number of profiles"
            )
        elsewhere = self.ranks.elsewhere(numbers, len(self.logits), device)
        masks = self.from_logits(stack(self.logits, numbers, elsewhere))
        norms = None
        if len(self.norms):
            own = (numbers, elsewhere) if self.own_norms else ([0], [])
            norms = stack(self.norms, *own)
        return SelectedMasks(masks, norms, inverse, numbers, elsewhere=elsewhere)

    def sharded_over(self, groups: Sequence[ProcessGroup]) -> None:
        self.ranks.groups = groups if len(self.logits) > 1 else ()

    def parameters_by_site(self) -> dict[Site, int]:
        share = sum(parameter.numel() for parameter in self.parameters()) // max(1, len(self.sites))
        return dict.fromkeys(self.sites, share)

    def clip_gradients(self, max_norm: float) -> list[nn.Parameter]:
        """Clip the gradient of every profile by its own norm, independently of other profiles."""
        norms = [self.norms] if self.own_norms else []
        heads = [] if self.heads is None else [self.heads.own]
        return clip_per_profile([self.logits, *norms, *heads], max_norm)

    def from_logits(self, logits: Tensor) -> Tensor:
        """Masks of logits (..., N) -> (..., N), scale included, with noise in train mode only."""
        logits = logits.float()
        if self.training and self.noise:
            uniform = torch.rand_like(logits).clamp_(1e-9, 1 - 1e-7)
            logits = logits - self.noise * torch.log(-torch.log(uniform))
        soft = torch.softmax(logits / self.temperature, -1)
        if self.k is None:
            return self.scale * soft
        hard = top_k(logits, self.k).to(soft.dtype)
        return self.scale * (hard + self.k * (soft - soft.detach()))


def top_k(logits: Tensor, k: int) -> Tensor:
    """True at the k largest logits of each row (..., N) -> (..., N); of ties, the lower index."""
    order = torch.sort(logits.detach(), stable=True, dim=-1, descending=True).indices[..., :k]
    return torch.zeros_like(logits, dtype=torch.bool).scatter_(-1, order, True)


def masks_of(model: nn.Module) -> Masks:
    """The masks that are attached to ``model``.

    Raises:
        ValueError: ``model`` has no masks, or the masks of several methods.
    """
    found = [module for module in model.modules() if isinstance(module, Masks)]
    if len(found) != 1:
        raise ValueError(
            f"{type(model).__name__} holds {len(found)} sets of profiles, expected 1: attach a "
            "plan with one XPEFT method"
        )
    return found[0]


@contextmanager
def profiles_of(model: nn.Module, rows: Tensor | Sequence[int] | SelectedMasks) -> Iterator[None]:
    """Set the profile of each row for every forward of this thread in a ``with`` block.

    For calls such as ``generate``, which do not accept ``profile``.

    Args:
        model: a model with an X-PEFT plan.
        rows: (B,), the number of each row's profile; or masks that are used as they are.

    Example:
        >>> from lightning_pelt import XPEFT, Plan, RandomBank, attach
        >>> from lightning_pelt.testing import tiny_gpt2
        >>> model = tiny_gpt2()
        >>> method = XPEFT(bank=RandomBank(size=8), k=2, bottleneck=4, profiles=3)
        >>> attachment = attach(model, Plan.uniform(method))
        >>> prompts = torch.tensor([[1, 2], [3, 4]])
        >>> with profiles_of(model, [2, 0]):
        ...     tokens = model.generate(prompts, max_new_tokens=2, pad_token_id=0)
        >>> tokens.shape
        torch.Size([2, 4])
    """
    masks = masks_of(model)
    before = masks.override.peek()
    masks.override.set(rows if isinstance(rows, SelectedMasks) else torch.as_tensor(rows))
    try:
        yield
    finally:
        masks.override.set(before)
