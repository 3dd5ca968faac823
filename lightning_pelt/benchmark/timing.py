"""Time and memory of the training steps of one model, in the current process.

Environments of other libraries run this file, so it imports nothing of this package.
"""

from __future__ import annotations

import ctypes
import os
import platform
import resource
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification

MEMORY_STEPS = 4


@dataclass(frozen=True)
class Setting:
    """The model and its batches: a BERT with random weights in fp32, in train mode with dropout.

    Args:
        device: device of the model and the batches.
        blocks: number of transformer blocks.
        width: hidden size.
        batch: rows of a batch.
        length: tokens of a row.
        threads: CPU threads of torch.
    """

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
        """A random batch in which between three quarters and all tokens of a row are real."""
        ids = torch.randint(1000, 20000, (self.batch, self.length))
        real = torch.linspace(0.75 * self.length, self.length, self.batch).long()
        mask = (torch.arange(self.length) < real[:, None]).long()
        tensors = {"input_ids": ids, "attention_mask": mask, "labels": torch.arange(self.batch) % 2}
        return {name: tensor.to(self.device) for name, tensor in tensors.items()}


Prepare = Callable[[BertForSequenceClassification], nn.Module]


@dataclass(frozen=True)
class StepTime:
    """The cost of one training step.

    Attributes:
        wall: seconds of wall-clock time.
        cpu: seconds of processor time, summed over all threads of this process.
        load: number of cores that other processes used meanwhile; None if it is unknown.
    """

    wall: float
    cpu: float
    load: float | None


class TimedTraining:
    """A model with an optimizer, whose training steps are timed.

    Args:
        prepare: freezes a model, attaches what is trained, and returns what to call.
        setting: the model and its batches.
    """

    def __init__(self, prepare: Prepare, setting: Setting) -> None:
        torch.set_num_threads(setting.threads)
        torch.manual_seed(0)
        self.setting = setting
        self.model = prepare(setting.model())
        trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=1e-4)
        reset_peak()
        self.idle_memory = self.peak_memory()

    def step(self, inputs: dict[str, Tensor]) -> None:
        """Run forward, backward and optimizer step, and drop the gradients."""
        self.model(**inputs).loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def time_steps(self, steps: int) -> StepTime:
        """The mean over ``steps`` steps, each on a new batch."""
        batches = [self.setting.inputs() for _ in range(steps)]
        self.synchronize()
        busy, cpu, wall = busy_seconds(), time.process_time(), time.perf_counter()
        for inputs in batches:
            self.step(inputs)
        self.synchronize()
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        now = busy_seconds()
        load = None if now is None or busy is None else max(0.0, (now - busy - cpu) / wall)
        return StepTime(wall / steps, cpu / steps, load)

    def synchronize(self) -> None:
        """Wait until the device has finished."""
        if self.setting.device.startswith("cuda"):
            torch.cuda.synchronize(self.setting.device)

    def peak_memory(self) -> int:
        """Peak memory so far, in bytes: of the process, or of its allocations on the device."""
        if self.setting.device.startswith("cuda"):
            return torch.cuda.max_memory_allocated(self.setting.device)
        unit = 1 if sys.platform == "darwin" else 1024
        return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    def memory_over_idle(self) -> int:
        """Peak bytes of the steps so far, above the model with its plan and optimizer."""
        return self.peak_memory() - self.idle_memory


def reset_peak(clear: Path = Path("/proc/self/clear_refs")) -> None:
    """Let the peak memory of this process start from what it uses now; only on Linux.

    Imports and the construction of a model need more than the model that is left of them.
    """
    with suppress(OSError):
        clear.write_text("5")  # see proc(5)


def return_freed_memory(threshold: int = 2**20) -> None:
    """Make this process return every freed tensor of more than ``threshold`` bytes to the system.

    By default, glibc keeps freed memory in a fragmented heap, and the peak memory of two runs of
    the same steps differs by 40 MiB. Other allocators are not changed.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is not None and platform.libc_ver()[0] == "glibc":
        mallopt(-3, threshold)  # M_MMAP_THRESHOLD in malloc.h; setting it also stops its growth


def frozen_floor(model: BertForSequenceClassification) -> nn.Module:
    """The model with a trained head alone, and gradients through all blocks."""
    model.requires_grad_(False)
    model.classifier.requires_grad_(True)
    model.bert.embeddings.register_forward_hook(_require_gradient)
    return model


def _require_gradient(module: nn.Module, args: tuple, output: Any) -> Tensor:
    return output.detach().requires_grad_(True)


def memory(prepare: Prepare, setting: Setting) -> int:
    """Peak bytes of training steps above the idle model, in a fresh process."""
    return_freed_memory()
    training = TimedTraining(prepare, setting)
    training.time_steps(MEMORY_STEPS)
    return training.memory_over_idle()


def busy_seconds(stat: Path = Path("/proc/stat")) -> float | None:
    """Seconds that all processors together have worked since boot; None outside Linux."""
    try:
        user, nice, system, _idle, _iowait, irq, soft, steal = map(
            int, stat.read_text().split("\n", 1)[0].split()[1:9]
        )
    except (OSError, ValueError):
        return None
    return (user + nice + system + irq + soft + steal) / os.sysconf("SC_CLK_TCK")
