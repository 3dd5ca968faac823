"""A fit of several profiles under FSDP2, on two processes without a GPU; a script."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from profiles.training import fit


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("backbone")
    parser.add_argument("--accumulate", type=int, default=1)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    fsdp2 = ModelParallelStrategy(
        data_parallel_size=2,
        tensor_parallel_size=1,
        save_distributed_checkpoint=False,
        process_group_backend="gloo",
    )
    own = {"norm": "profile", "head": "profile"}
    fit(asked.folder, asked.backbone, strategy=fsdp2, devices=2, accumulate=asked.accumulate, **own)


if __name__ == "__main__":
    main()
