"""``TrunkCache``: the frozen blocks below a plan run once per example."""

from __future__ import annotations

from os import PathLike, fspath
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn

from lightning_pelt.callbacks._attached import attached_to
from lightning_pelt.training.state_store import described
from lightning_pelt.training.trunk_cache import CachedTrunk, Counts

DEFAULT_BYTES = 10 * 2**30
AGAIN = 0.05  # share of the examples of a later epoch that at least come again


class TrunkCache(Callback):
    """Compute the frozen blocks below a plan once for each example, and keep their output.

    A plan for upper blocks leaves the embeddings and the lowest blocks as they are, so that they
    return the same hidden states for an example in every epoch, run and validation. This callback
    keeps the states in files, and forwards start at the lowest block that the plan extends. What is
    trained is the same, up to the rounding of products of other shapes.

    States are found by what they follow from: the weights, the block, the dtypes, and the tokens of
    the example with their positions and types. Other weights, other tokens and augmented examples
    are computed. States of other weights are deleted from the folder, unless a run is using them.
    Several runs, the jobs of a search and the processes of a run may share a folder.

    The callback works with :class:`PELTModule`, and with any module that has a plan from
    :class:`PELTCallback` or :func:`attach`. It warns, and the module trains without it, if the plan
    reaches down to block 0 or to the embeddings, if the model has several stacks, or is sharded,
    quantised or compiled, and if a trial shows that upper blocks read more than hidden states. With
    active dropout in the frozen base (``base_dropout``, which is on by default) it serves
    validation and tests alone.

    Hidden states of padding are not kept, and are zeros where blocks and heads read them; the
    attention and the tasks of this package do not, and for gates with ``pool="all"`` they are kept.

    Logs ``trunk_cache/mib``, the size in MiB, and ``trunk_cache/read``, the share of rows whose
    states were read, at the end of each epoch.

    Args:
        folder: of the files, which may take much space: number of tokens x width x bytes of a
            number, such as 2.9 GiB for a million tokens of BERT-base in fp32.
        max_bytes: of all files in ``folder``. Examples beyond it are computed in every epoch.
        padding: keep the states of padding too, for modules that read them. States are then found
            in batches of the same width only.

    Raises:
        ValueError: ``max_bytes`` is not positive, ``folder`` is a file, or nothing is attached.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning_pelt import Group, LoRA, PELTModule, Plan, TrunkCache
        >>> plan = Plan([Group([LoRA()], blocks="3-5")])
        >>> module = PELTModule("sentence-transformers/all-MiniLM-L6-v2", plan,
        ...     labels=["no", "yes"], base_dropout=False)
        >>> trainer = Trainer(callbacks=[TrunkCache("runs/trunk")], logger=False)
        >>> trainer.fit(module, datamodule)  # doctest: +SKIP
    """

    def __init__(
        self,
        folder: str | PathLike[str] = "runs/trunk_cache",
        max_bytes: int = DEFAULT_BYTES,
        padding: bool = False,
    ) -> None:
        if max_bytes <= 0:
            raise ValueError(f"max_bytes is {max_bytes}, expected a number of bytes above 0")
        self.folder, self.max_bytes, self.padding = fspath(folder), int(max_bytes), padding
        if Path(self.folder).exists() and not Path(self.folder).is_dir():
            raise ValueError(f"folder {self.folder!r} is a file, expected a folder for the states")
        self._trunks: list[CachedTrunk] = []
        self._off: set[str] = set()

    @property
    def trunks(self) -> list[CachedTrunk]:
        """The models that are served, in a run."""
        return self._trunks

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_trunks": []}

    # The life of a run.

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._begin(pl_module)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._begin(pl_module)  # unless a fit has begun

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._begin(pl_module)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._begin(pl_module)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._end()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        self._end()

    def _begin(self, pl_module: LightningModule) -> None:
        if self._trunks:
            return
        self._off = set()
        attachments = attached_to(pl_module, self).by_path.values()
        compiled = getattr(pl_module, "_compiler_ctx", None) is not None
        for attachment in attachments:
            trunk = CachedTrunk(
                attachment, Path(self.folder), max_bytes=self.max_bytes, padding=self.padding
            )
            if compiled and trunk.off is None:
                trunk.turn_off("the module is compiled: fit it as it is")
            self._trunks.append(trunk)
        self._tell_off()

    def _end(self) -> None:
        trunks, self._trunks = self._trunks, []
        for trunk in trunks:
            trunk.share()
            rows = trunk.before + trunk.counts + trunk.evaluated
            for store in trunk.stores.values():
                read = f"{100 * rows.share:.0f}% of the rows of this run were read from it"
                rank_zero_info(f"Trunk cache: {described(store)}; {read}")
            trunk.remove()

    def _tell_off(self) -> None:
        for trunk in self._trunks:
            if trunk.off is not None and trunk.off not in self._off:
                self._off.add(trunk.off)
                rank_zero_warn(f"the trunk cache is off: {trunk.off}")

    # After every batch.

    def _after_batch(self) -> None:
        for trunk in self._trunks:
            trunk.settle()
        self._tell_off()

    def on_train_batch_end(self, *_: Any) -> None:
        self._after_batch()
        for trunk in self._trunks:
            trunk.tell_of_dropout()

    def on_validation_batch_end(self, *_: Any) -> None:
        self._after_batch()

    def on_test_batch_end(self, *_: Any) -> None:
        self._after_batch()

    def on_predict_batch_end(self, *_: Any) -> None:
        self._after_batch()

    # Epochs.

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for trunk in self._trunks:
            trunk.refresh()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for trunk in self._trunks:
            trunk.share()
        trainer.strategy.barrier("trunk_cache")  # the next epoch reads what others have written
        self._log(pl_module)
        self._stop_if_idle()

    def _log(self, pl_module: LightningModule) -> None:
        stores = [store for trunk in self._trunks for store in trunk.stores.values()]
        if stores:
            size = sum(store.size for store in stores) / 2**20
            epoch = sum((trunk.counts for trunk in self._trunks), Counts())
            # Not synchronised: the cache may be off in one of several processes.
            pl_module.log("trunk_cache/mib", size, prog_bar=True, rank_zero_only=True)
            pl_module.log("trunk_cache/read", epoch.share, rank_zero_only=True)

    def _stop_if_idle(self) -> None:
        """Turn off where hardly any example comes again, as with augmented data."""
        for trunk in self._trunks:
            trunk.refuse_unread()
            now, trunk.counts = trunk.counts, Counts()
            first, trunk.before = not trunk.before.computed + trunk.before.read, trunk.before + now
            full = any(store.full for store in trunk.stores.values())
            if not first and not full and now.computed and now.share < AGAIN:
                trunk.turn_off(
                    f"{now.read:,} of {now.read + now.computed:,} examples of an epoch came "
                    "before, as if they were augmented or masked at random"
                )
        self._tell_off()
