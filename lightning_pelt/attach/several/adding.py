"""How named adapters come onto a model, and into files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from lightning_pelt.attach.adapter_files import load_adapters
from lightning_pelt.attach.attach import attach
from lightning_pelt.attach.attachment import Attachment
from lightning_pelt.attach.saving import save_adapters
from lightning_pelt.attach.several.entry import Entry
from lightning_pelt.attach.several.labels import Labels, replace_head
from lightning_pelt.attach.several.named import Named
from lightning_pelt.attach.several.names import check_name
from lightning_pelt.plans.plan import Plan, from_config
from lightning_pelt.plans.require import require_plan
from lightning_pelt.utils.adapter_format import TENSORS, read_adapters
from lightning_pelt.utils.formats import OURS, expect_format


class Adding(Named):
    """The part of :class:`~lightning_pelt.Adapters` that adds, reads and writes adapters."""

    def add(
        self,
        name: str,
        plan: Plan,
        *,
        seed: int = 0,
        head: Sequence[str] | None = None,
        labels: Labels = None,
        example_inputs: dict[str, Tensor] | None = None,
    ) -> Attachment:
        """Attach a plan under a name and activate it.

        Args:
            name: letters, digits, ``_``, ``-``, ``+`` and ``.``.
            plan: what goes where.
            seed: of the new weights.
            head: paths of modules that are trained as its head, see :func:`lightning_pelt.attach`.
            labels: their number or their names, for a new head of another size than the model's;
                None for a copy of the model's head.
            example_inputs: see :func:`lightning_pelt.attach`.

        Raises:
            ValueError: the name is taken or not allowed, the plan trains the base, or it does not
                fit the model. The model is then as it was.
        """
        check_name(name, self._kept.entries)
        if require_plan(plan).train_base:
            raise ValueError(
                f"{plan} trains the base, which all adapters share: add a plan that freezes it"
            )
        with self._replacing() as before:
            if labels is not None:
                replace_head(self.model, labels, seed=seed)
            attachment = attach(
                self.model, plan, seed=seed, head=head, example_inputs=example_inputs
            )
            self._keep(name, Entry.capture(before, attachment))
        return attachment

    def load(
        self,
        name: str,
        folder: str | Path,
        *,
        strict: bool = False,
        example_inputs: dict[str, Tensor] | None = None,
    ) -> Attachment:
        """Read what ``save_adapters`` wrote, under a name, and activate it.

        The adapter gets a head of its own for the labels in the file.

        Args:
            name: see :meth:`add`.
            folder: of the two files.
            strict: raise where another backbone would give a warning.
            example_inputs: see :func:`lightning_pelt.attach`.

        Raises:
            FileNotFoundError: there is no ``adapters.safetensors``.
            ValueError: the name is taken, or see :func:`lightning_pelt.load_adapters`. The model is
                then as it was.

        Example:
            >>> from tempfile import TemporaryDirectory
            >>> from lightning_pelt import Adapters, LoRA, Plan
            >>> from lightning_pelt.testing import tiny_bert
            >>> adapters = Adapters(tiny_bert())
            >>> attachment = adapters.add("ann", Plan.uniform(LoRA()))
            >>> with TemporaryDirectory() as folder:
            ...     attachment = adapters.load("copy", adapters.save("ann", folder))
            >>> adapters.names
            ['ann', 'copy']
        """
        check_name(name, self._kept.entries)
        path = expect_format(folder, OURS) / TENSORS
        config, _ = read_adapters(path)
        before = self.active
        try:
            plan, labels = from_config(config["plan"]), config["backbone"].get("labels")
        except Exception as error:
            raise ValueError(f"{path}: {error}") from error
        try:
            other = self._other(labels)
            self.add(name, plan, labels=other, example_inputs=example_inputs)
            attachment = load_adapters(self.model, folder, strict=strict)
            self._kept.entry(name).share()
        except BaseException:
            if name in self:
                self.delete(name)
            if before is not None:
                self.activate(before)
            raise
        return attachment

    def _other(self, labels: Labels) -> Labels:
        """``labels``, if the bare model has others."""
        with self.using(None):
            here = getattr(self.model.config, "id2label", None) or {}
        return None if labels == [here[key] for key in sorted(here)] else labels

    def save(self, name: str, folder: str | Path, *, fold: bool = False) -> Path:
        """Write an adapter as ``save_adapters`` does; the files do not tell that it had a name.

        Raises:
            ValueError: there is none of this name.
            OSError: the disk is full or not writable.
        """
        with self.using(name), self._kept.silent():
            return save_adapters(self.model, folder, fold=fold)
