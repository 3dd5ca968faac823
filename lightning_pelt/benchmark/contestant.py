"""One plan on one model, taking training steps in a process of its own."""

from __future__ import annotations

import ctypes
import os
import platform
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification

from lightning_pelt.attach import attach
from lightning_pelt.methods import (
    IA3,
    XPEFT,
    Adapter,
    BitFit,
    Compacter,
    LoRA,
    LowRankAdapter,
    Prefix,
)
from lightning_pelt.plan import FullFineTuning, HeadOnly, Plan, UniPELT
from lightning_pelt.profiles.bank import RandomBank

FLOOR, FULL = "floor", "full"
APL = "unipelt-apl"
# None is the frozen floor, which no plan describes.
PLANS: dict[str, Callable[[], Plan] | None] = {
    FLOOR: None,
    FULL: FullFineTuning,
    "head": HeadOnly,
    "lora": lambda: Plan.uniform(LoRA(r=8)),
    "adapter": lambda: Plan.uniform(Adapter()),
    "prefix": lambda: Plan.uniform(Prefix()),
    "prefix-flat": lambda: Plan.uniform(Prefix(mlp=None)),
    "bitfit": lambda: Plan.uniform(BitFit()),
    "ia3": lambda: Plan.uniform(IA3()),
    "unipelt-ap": lambda: UniPELT([Adapter(), Prefix()]),
    APL: UniPELT,
    "apl-ungated": lambda: Plan.uniform(Adapter(), Prefix(), LoRA()),
    "adapter-both": lambda: Plan.uniform(_dense("attention", "ffn"), norms=True),
    "adapter-ffn": lambda: Plan.uniform(_dense("ffn"), norms=True),
    "compacter": lambda: Plan.uniform(Compacter()),
    "compacter++": lambda: Plan.uniform(Compacter(sites="compacter++")),
    "phm": lambda: Plan.uniform(Compacter(n=12, share_rule=False, factorized=False)),
    "low-rank": lambda: Plan.uniform(LowRankAdapter()),
    "xpeft-100": lambda: Plan.uniform(XPEFT(bank=RandomBank(size=100))),
    "xpeft-800": lambda: Plan.uniform(XPEFT(bank=RandomBank(size=800))),
}
# Plans that are also measured against another one, of the same bottleneck at the same sites.
RIVALS = {
    "compacter": "adapter-both",
    "compacter++": "adapter-ffn",
    "phm": "adapter-both",
    "low-rank": "adapter-both",
    "xpeft-100": "adapter",
    "xpeft-800": "adapter",
}


def _dense(*sites: str) -> Adapter:
    return Adapter(reduction_factor=32, sites=sites, placement="sequential", activation="gelu_new")


@dataclass(frozen=True)
class Setting:
    """The model and its batches: BERT of ``blocks`` blocks, random weights, dropout on, fp32."""

    device: str = "cpu"
    blocks: int = 4
    width: int = 768
    batch: int = 8
    length: int = 128
    threads: int = 2

    def model(self) -> BertForSequenceClassification:
        config = BertConfig(
            hidden_size=self.width,
            intermediate_size=4 * self.width,
            num_attention_heads=max(1, self.width // 64),
            num_hidden_layers=self.blocks,
        )
        return BertForSequenceClassification(config).train().to(self.device)

    def inputs(self) -> dict[str, Tensor]:
        """A random batch whose rows are between three quarters and wholly real."""
        ids = torch.randint(1000, 20000, (self.batch, self.length))
        real = torch.linspace(0.75 * self.length, self.length, self.batch).long()
        mask = (torch.arange(self.length) < real[:, None]).long()
        given = {"input_ids": ids, "attention_mask": mask, "labels": torch.arange(self.batch) % 2}
        return {name: tensor.to(self.device) for name, tensor in given.items()}


@dataclass(frozen=True)
class Turn:
    """What one training step took: seconds of wall clock and of our processor time (all threads).

    ``load`` is the number of cores that other processes took meanwhile, None where unknown.
    """

    wall: float
    cpu: float
    load: float | None


class Contestant:
    """A model with a plan and an optimizer.

    Raises:
        KeyError: a name that is not in ``PLANS``.
    """

    def __init__(self, name: str, setting: Setting) -> None:
        torch.set_num_threads(setting.threads)
        torch.manual_seed(0)
        self.setting, self.model = setting, setting.model()
        make = PLANS[name]
        if make is None:
            self.model.requires_grad_(False)
            self.model.classifier.requires_grad_(True)
            self.model.bert.embeddings.register_forward_hook(_require_gradient)
        else:
            attach(self.model, make())
        trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=1e-4)
        self.idle = self.peak()

    def step(self, inputs: dict[str, Tensor]) -> None:
        """Forward, backward, optimizer step, and dropping the gradients."""
        self.model(**inputs).loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def turn(self, steps: int) -> Turn:
        """The mean over ``steps`` steps, each on a batch of its own."""
        batches = [self.setting.inputs() for _ in range(steps)]
        self.wait()
        busy, cpu, wall = busy_seconds(), time.process_time(), time.perf_counter()
        for inputs in batches:
            self.step(inputs)
        self.wait()
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        now = busy_seconds()
        load = None if now is None or busy is None else max(0.0, (now - busy - cpu) / wall)
        return Turn(wall / steps, cpu / steps, load)

    def wait(self) -> None:
        if self.setting.device.startswith("cuda"):
            torch.cuda.synchronize(self.setting.device)

    def peak(self) -> int:
        """Peak memory so far, in bytes: of the process, or of its allocations on the device."""
        if self.setting.device.startswith("cuda"):
            return torch.cuda.max_memory_allocated(self.setting.device)
        unit = 1 if sys.platform == "darwin" else 1024
        return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    def over_idle(self) -> int:
        """Bytes by which the steps so far went beyond the model, its plan and its optimizer."""
        return self.peak() - self.idle


def give_back_freed_memory(threshold: int = 2**20) -> None:
    """Let this process return every freed tensor above ``threshold`` bytes to the system.

    glibc otherwise keeps freed memory in a heap with holes, and the peak of two runs of the same
    steps differs by 40 MiB. Other allocators stay as they are.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is not None and platform.libc_ver()[0] == "glibc":
        mallopt(-3, threshold)  # M_MMAP_THRESHOLD of malloc.h; setting it stops it from growing


def _require_gradient(module: nn.Module, args: tuple, output: Any) -> Tensor:
    return output.detach().requires_grad_(True)


def busy_seconds(stat: Path = Path("/proc/stat")) -> float | None:
    """Seconds that all processors together worked since boot; None where Linux does not say."""
    try:
        user, nice, system, _idle, _iowait, irq, soft, steal = map(
            int, stat.read_text().split("\n", 1)[0].split()[1:9]
        )
    except (OSError, ValueError):
        return None
    return (user + nice + system + irq + soft + steal) / os.sysconf("SC_CLK_TCK")
