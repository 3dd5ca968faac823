"""The twenty steps under FSDP1, on two processes without a GPU; a script.

Lightning and torch expect a GPU, so the strategy here names the CPU as the device and leaves out
the move of the collected tensors to it, which frees them there.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.strategies import FSDPStrategy, fsdp
from torch import nn
from torch.distributed.fsdp import FullStateDictConfig, FullyShardedDataParallel, StateDictType
from torch.distributed.fsdp.api import FullOptimStateDictConfig
from transformers.models.bert.modeling_bert import BertLayer
from twenty_steps import fit, half

from lightning_pelt import save_adapters


class OnCPU(FSDPStrategy):
    def _setup_model(self, model: nn.Module) -> Any:
        wrapped = FullyShardedDataParallel(
            model,
            device_id=torch.device("cpu"),
            mixed_precision=self.mixed_precision_config,
            **self.kwargs,
        )
        return super()._setup_model(wrapped)

    def teardown(self) -> None:
        with pytest.raises(ValueError, match=r"only a part of .*load_from_checkpoint"):
            save_adapters(self.lightning_module, "adapters")
        super().teardown()


def collect_on_cpu() -> None:
    fsdp._get_full_state_dict_context = _whole_on_cpu  # type: ignore[assignment]


def _whole_on_cpu(module: nn.Module, world_size: int, rank0_only: bool = True) -> Any:
    options = {"offload_to_cpu": False, "rank0_only": rank0_only}
    configs = FullStateDictConfig(**options), FullOptimStateDictConfig(**options)
    return FullyShardedDataParallel.state_dict_type(module, StateDictType.FULL_STATE_DICT, *configs)


def main() -> None:
    """Afresh, on from that half, and from the half of another run; or recomputing activations."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("backbone")
    parser.add_argument("half", type=Path)
    parser.add_argument("kind", choices=["full", "sharded", "checkpointed"])
    asked = parser.parse_args()
    torch.set_num_threads(1)
    collect_on_cpu()

    checkpointed = asked.kind == "checkpointed"

    def two() -> dict[str, Any]:
        strategy = OnCPU(
            auto_wrap_policy={BertLayer},
            activation_checkpointing_policy={BertLayer} if checkpointed else None,
            state_dict_type="full" if checkpointed else asked.kind,
            process_group_backend="gloo",
        )
        return {"strategy": strategy, "devices": 2}

    if checkpointed:
        fit(asked.folder, asked.backbone, **two())
        return
    first = asked.folder / "afresh"
    fit(first, asked.backbone, **two())
    fit(asked.folder / "resumed", asked.backbone, resume=half(first), **two())
    fit(asked.folder / "from_one", asked.backbone, resume=asked.half, **two())


if __name__ == "__main__":
    main()
