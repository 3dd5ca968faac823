"""After a fit in spawned or forked processes: the trained weights in the main process.

Lightning trains copies of the module, and then loads the weights of process 0 into the module of
the main process, where no hook of a callback has run. The tensors of submodules would find no place
there and be dropped. Lightning calls nothing in the main process before it loads them, so its
launcher is changed here.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

Attach = Callable[[Any], None]
DONE = "_attaches_before_loading"


def attach_before_loading(attach: Attach) -> None:
    """Call ``attach(trainer)`` in the main process before a launcher loads the trained weights.

    Args:
        attach: makes the module of a trainer what the processes have trained.
    """
    for package in ("lightning.pytorch", "pytorch_lightning"):  # one library under two names
        module = sys.modules.get(f"{package}.strategies.launchers.multiprocessing")
        launcher = getattr(module, "_MultiProcessingLauncher", None)
        if launcher is not None and not hasattr(launcher, DONE):
            recover = _recover_after(launcher._recover_results_in_main_process, attach)
            launcher._recover_results_in_main_process = recover
            setattr(launcher, DONE, True)


def _recover_after(recover: Callable[..., None], attach: Attach) -> Callable[..., None]:
    def attach_and_recover(launcher: Any, output: Any, trainer: Any) -> None:
        if output.weights_path is not None:  # of a fit
            attach(trainer)
        recover(launcher, output, trainer)

    return attach_and_recover
