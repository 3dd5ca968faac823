"""Profiles from a model, and profiles into a model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from lightning_pelt.methods.xpeft.masks import Masks, SelectedMasks, masks_of, top_k
from lightning_pelt.methods.xpeft.profile_heads import ProfileHeads
from lightning_pelt.profiles.profile import Profile

HEAD = "weight_and_bias"  # (C, d + 1)


def read_profile(model: nn.Module, number: int = 0) -> Profile:
    """The profile with this number in ``model``, ready to be stored.

    A norm or head that all profiles share is part of the model, not of the profile.

    Raises:
        ValueError: ``model`` has no X-PEFT masks, or no profile with this number.

    Example:
        >>> from lightning_pelt import XPEFT, Plan, RandomBank, attach
        >>> from lightning_pelt.testing import tiny_bert
        >>> model = tiny_bert()
        >>> method = XPEFT(bank=RandomBank(size=8), k=2, bottleneck=4, profiles=3)
        >>> attachment = attach(model, Plan.uniform(method))
        >>> profile = read_profile(model, 2)
        >>> profile.k, profile.blocks, profile.size
        (2, 2, 8)
    """
    masks = masks_of(model)
    logits = _logits(masks, number).detach().float().cpu()
    if masks.k is None:
        values = torch.softmax(logits / masks.temperature, -1).numpy()
    else:
        values = top_k(logits, masks.k).numpy()
    norm = masks.norms[number].detach().float().cpu().numpy() if masks.own_norms else None
    heads = heads_of(model)
    head = None if heads is None else {HEAD: heads.own[number].detach().float().cpu().numpy()}
    return Profile(values, masks.bank.digest, float(masks.scale), norm=norm, head=head)


def write_profile(model: nn.Module, number: int, profile: Profile) -> None:
    """Set the masks, and norm and head if they are not shared, of a profile of ``model``.

    The profile can be trained further.

    Raises:
        ValueError: ``profile`` has another bank, shape or scale than the plan of ``model``.

    Example:
        >>> from lightning_pelt import XPEFT, Plan, RandomBank, attach
        >>> from lightning_pelt.testing import tiny_bert
        >>> model = tiny_bert()
        >>> method = XPEFT(bank=RandomBank(size=8), k=2, bottleneck=4, profiles=3)
        >>> attachment = attach(model, Plan.uniform(method))
        >>> write_profile(model, 0, read_profile(model, 2))
        >>> read_profile(model, 0) == read_profile(model, 2)
        True
    """
    masks = masks_of(model)
    logits = _logits(masks, number)
    heads = heads_of(model)
    check_fits(masks, profile, heads)
    values = torch.from_numpy(profile.masks)
    # Soft weights are restored exactly. Hard masks determine only the order of the logits.
    restored = 0.01 * values if profile.hard else masks.temperature * values.clamp(min=1e-30).log()
    with torch.no_grad():
        logits.copy_(restored.to(logits))
        if masks.own_norms and profile.norm is not None:
            masks.norms[number].copy_(torch.from_numpy(profile.norm))
        if heads is not None and profile.head is not None:
            heads.own[number].copy_(torch.from_numpy(profile.head[HEAD]))


def heads_of(model: nn.Module) -> ProfileHeads | None:
    """The heads of the profiles of ``model``; None if they share one head."""
    return next((module for module in model.modules() if isinstance(module, ProfileHeads)), None)


def stored_masks(model: nn.Module, profiles: Sequence[Profile]) -> SelectedMasks:
    """The masks of a batch that has one row of each stored profile.

    Raises:
        ValueError: a profile does not fit the plan of ``model``.
    """
    masks, heads = masks_of(model), heads_of(model)
    for profile in profiles:
        check_fits(masks, profile, heads)
    device = masks.logits[0].device

    def stacked(parts: Sequence[np.ndarray | None]) -> Tensor:
        return torch.from_numpy(np.stack([p for p in parts if p is not None])).to(device).float()

    values = masks.scale * stacked([profile.masks for profile in profiles])
    norms = stacked([profile.norm for profile in profiles]) if masks.own_norms else None
    own = None if heads is None else stacked([(p.head or {}).get(HEAD) for p in profiles])
    return SelectedMasks(values, norms, torch.arange(len(profiles), device=device), (), own)


def check_fits(masks: Masks, profile: Profile, heads: ProfileHeads | None) -> None:
    """Check that a profile belongs to the plan of a model.

    Raises:
        ValueError: the digest, shape, k, scale, norm or head differs; the message names it.
    """
    if profile.bank != masks.bank.digest:
        raise ValueError(
            f"the profile belongs to the bank {profile.bank}, and the model has "
            f"{masks.bank.digest}: use a model with the bank of the profile"
        )
    shape = (len(masks.sites), 2, masks.bank.size)
    pairs = {
        "masks of shape": (profile.masks.shape, shape),
        "k": (profile.k, masks.k),
        "scale": (np.float32(profile.scale), np.float32(masks.scale)),
        "a norm that is not shared:": (profile.norm is not None, masks.own_norms),
        "a head of shape": (_head_shape(profile), heads and tuple(heads.own[0].shape)),
    }
    for what, (found, expected) in pairs.items():
        if found != expected:
            raise ValueError(
                f"the profile has {what} {found}, and the model's plan {expected}: use the plan "
                "that the profile was trained with"
            )


def _head_shape(profile: Profile) -> tuple[int, ...] | None:
    head = (profile.head or {}).get(HEAD)
    return None if head is None else head.shape


def _logits(masks: Masks, number: int) -> nn.Parameter:
    if not 0 <= number < len(masks.logits):
        raise ValueError(
            f"there is no profile {number}: the plan has {len(masks.logits)} profiles, numbered "
            "from 0"
        )
    return masks.logits[number]
