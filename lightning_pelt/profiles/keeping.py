"""Profiles out of a trained model, back into one, and new ones from those that are there."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from lightning_pelt.profiles.heads import Heads
from lightning_pelt.profiles.masks import Choice, Masks, masks_of, picks
from lightning_pelt.profiles.profile import Profile

HEAD = "weight_and_bias"  # (C, d + 1)


def read_profile(model: nn.Module, number: int = 0) -> Profile:
    """What profile ``number`` of ``model`` has learnt, ready to be stored.

    Shared parts, a norm or the head, are the model's and stay with it.

    Raises:
        ValueError: ``model`` has no X-PEFT, or no such profile.
    """
    masks = masks_of(model)
    logits = _logits(masks, number).detach().float().cpu()
    if masks.k is None:
        chosen = torch.softmax(logits / masks.temperature, -1).numpy()
    else:
        chosen = picks(logits, masks.k).numpy()
    norm = masks.norms[number].detach().float().cpu().numpy() if masks.own_norms else None
    heads = heads_of(model)
    head = None if heads is None else {HEAD: heads.own[number].detach().float().cpu().numpy()}
    return Profile(chosen, masks.bank.digest, float(masks.scale), norm=norm, head=head)


def write_profile(model: nn.Module, number: int, profile: Profile) -> None:
    """Make profile ``number`` of ``model`` choose as ``profile`` does; it can go on training.

    Raises:
        ValueError: the profile belongs to another bank, or has other shapes or another scale.
    """
    masks = masks_of(model)
    logits = _logits(masks, number)
    heads = heads_of(model)
    check_fits(masks, profile, heads)
    chosen = torch.from_numpy(profile.masks)
    # Soft weights come back exactly; of hard masks only the order of the logits is known.
    restored = 0.01 * chosen if profile.hard else masks.temperature * chosen.clamp(min=1e-30).log()
    with torch.no_grad():
        logits.copy_(restored.to(logits))
        if masks.own_norms and profile.norm is not None:
            masks.norms[number].copy_(torch.from_numpy(profile.norm))
        if heads is not None and profile.head is not None:
            heads.own[number].copy_(torch.from_numpy(profile.head[HEAD]))


def warm_start(model: nn.Module, number: int, among: Iterable[int] | None = None) -> None:
    """Let profile ``number`` begin where the others (or those ``among``) are on average.

    Raises:
        ValueError: there are no others, or no such profile.
    """
    masks = masks_of(model)
    target = _logits(masks, number)
    others = [n for n in (range(len(masks.logits)) if among is None else among) if n != number]
    if not others:
        raise ValueError(f"profile {number} has no others to begin from: the plan has one profile")
    with torch.no_grad():
        target.copy_(torch.stack([_logits(masks, other) for other in others]).mean(0))
        if masks.own_norms:
            masks.norms[number].copy_(torch.stack([masks.norms[n] for n in others]).mean(0))
        heads = heads_of(model)
        if heads is not None:
            heads.own[number].copy_(torch.stack([heads.own[n] for n in others]).mean(0))


def heads_of(model: nn.Module) -> Heads | None:
    """The profiles' own heads on ``model``, if there are any."""
    return next((module for module in model.modules() if isinstance(module, Heads)), None)


def choice_of(model: nn.Module, profiles: Sequence[Profile]) -> Choice:
    """Stored profiles as what a batch with one row of each would choose.

    Raises:
        ValueError: one of them does not fit the model.
    """
    masks, heads = masks_of(model), heads_of(model)
    for profile in profiles:
        check_fits(masks, profile, heads)
    device = masks.logits[0].device

    def stacked(parts: Sequence[np.ndarray | None]) -> Tensor:
        return torch.from_numpy(np.stack([p for p in parts if p is not None])).to(device).float()

    chosen = masks.scale * stacked([profile.masks for profile in profiles])
    norms = stacked([profile.norm for profile in profiles]) if masks.own_norms else None
    own = None if heads is None else stacked([(p.head or {}).get(HEAD) for p in profiles])
    return Choice(chosen, norms, torch.arange(len(profiles), device=device), (), own)


def check_fits(masks: Masks, profile: Profile, heads: Heads | None) -> None:
    """Refuse a profile that is not one of this model's.

    Raises:
        ValueError: naming what differs: digest, shape, kind, k, scale or norm.
    """
    if profile.bank != masks.bank.digest:
        raise ValueError(
            f"the profile belongs to the bank {profile.bank}, and the model has "
            f"{masks.bank.digest}: load it into a model with the bank that it was trained on"
        )
    here = (len(masks.sites), 2, masks.bank.size)
    pairs = {
        "masks of shape": (profile.masks.shape, here),
        "k": (profile.k, masks.k),
        "scale": (np.float32(profile.scale), np.float32(masks.scale)),
        "a norm of its own": (profile.norm is not None, masks.own_norms),
        "a head of its own": (_head_shape(profile), heads and tuple(heads.own[0].shape)),
    }
    for what, (there, mine) in pairs.items():
        if there != mine:
            raise ValueError(
                f"the profile has {what} {there}, and the model's plan {mine}: take the plan that "
                "the profile was trained with"
            )


def _head_shape(profile: Profile) -> tuple[int, ...] | None:
    head = (profile.head or {}).get(HEAD)
    return None if head is None else head.shape


def _logits(masks: Masks, number: int) -> nn.Parameter:
    if not 0 <= number < len(masks.logits):
        raise ValueError(
            f"there is no profile {number}: the plan has {len(masks.logits)}, numbered from 0"
        )
    return masks.logits[number]
