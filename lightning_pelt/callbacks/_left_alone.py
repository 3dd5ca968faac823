"""Which Hugging Face models of a module no plan is attached to."""

from __future__ import annotations

from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn
from transformers import PreTrainedModel

from lightning_pelt.attach import find_attachments
from lightning_pelt.attach.freezing import inside


def tell_left_alone(module: LightningModule) -> None:
    """Name the models of ``module`` that no plan is attached to; warn of those that train."""
    attached = find_attachments(module)
    outer = [a.surroundings.outer for a in attached.values() if a.surroundings is not None]
    frozen = {inner for model in outer for inner in model.modules()}
    left: dict[str, PreTrainedModel] = {}
    for name, model in module.named_modules():
        if not isinstance(model, PreTrainedModel) or model in frozen:
            continue
        holds_attached = any(inside(path, name) or path == name for path in attached)
        if not holds_attached and not any(inside(name, path) for path in [*attached, *left]):
            left[name] = model
    for name, model in left.items():
        count = sum(p.numel() for p in model.parameters() if p.requires_grad)
        tell = rank_zero_warn if count else rank_zero_info
        tell(
            f"no PELTCallback names {name}, a {type(model).__name__}, so it stays as it is, with "
            f"{count:,} trainable parameters. Give it its own PELTCallback(plan, path={name!r}), "
            "or freeze it with requires_grad_(False)"
        )
