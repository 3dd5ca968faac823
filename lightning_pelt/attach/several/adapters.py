"""``Adapters``: several named adapters on one model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from lightning_pelt.attach.attachment import Attachment
from lightning_pelt.attach.several.adding import Adding
from lightning_pelt.attach.several.averaging import (
    Averaging,
    average,
    combination,
    refuse_unequal,
    refuse_without_zero,
    shares,
)
from lightning_pelt.attach.several.names import check_name
from lightning_pelt.attach.several.rows import mixed_rows
from lightning_pelt.attach.several.stacking import head_of, labels_of, share, stacked_plan


class Adapters(Adding):
    """Several named adapters on one model, of which one is active.

    An adapter is what ``attach`` puts on a model: the submodules and gates of a plan, a head, and
    the norms that the plan trains. Every adapter has its own copies of head and norms. The active
    one is attached as if it were the only one: parameters, state dicts, checkpoints,
    ``save_adapters``, ``load_adapters`` and ``PELTCallback`` see it alone. The others are parked:
    off the model, with all their weights in memory. Switching exchanges references and copies
    nothing.

    The model itself keeps the adapters, so that ``Adapters(model)`` is the same set each time, and
    copies and pickles of the model hold all of them. Parked adapters follow the model to another
    device or dtype, and into train or eval mode, when they are activated.

    A checkpoint or state dict holds the active adapter alone; the first one that leaves others out
    gives a warning. An optimizer keeps the parameters that were active when it was made, so do not
    switch during a fit, nor in a model that ``DistributedDataParallel`` or ``fully_shard`` wraps.
    ``detach`` and ``merge`` are refused while there are other adapters.

    Switching changes the model for all threads. :meth:`using` and :meth:`rows` hold a lock, so that
    threads that call the model inside them wait for each other; calls outside are not protected.

    Args:
        model: a Hugging Face model, or a module that holds one.
        path: of the model inside ``model``, if there are several.

    Raises:
        ValueError: there is no such model, or it has a plan without a name.

    Example:
        >>> from lightning_pelt import Adapters, LoRA, Plan, UniPELT
        >>> from lightning_pelt.testing import tiny_bert
        >>> adapters = Adapters(tiny_bert())
        >>> attachment = adapters.add("ann", Plan.uniform(LoRA()))
        >>> attachment = adapters.add("bob", UniPELT())
        >>> adapters
        Adapters(ann, bob; active: bob)
        >>> adapters.activate("ann")
        >>> adapters.active
        'ann'
    """

    def average(
        self,
        name: str,
        names: Sequence[str],
        *,
        weights: Sequence[float] | None = None,
        method: Averaging = "plain",
        density: float | None = None,
        seed: int = 0,
    ) -> Attachment:
        r"""Average the weights of adapters with equal plans into a new one, and activate it.

        Every tensor is averaged separately, LoRA's A and B too, so that the average of equal
        adapters is the same adapter. ``peft``'s ``add_weighted_adapter(combination_type="linear")``
        weights A and B by :math:`\sqrt{w_i}` instead.

        Args:
            name: of the new adapter.
            names: of the adapters.
            weights: one per adapter; they are divided by their sum. Equal by default.
            method: ``plain``; ``ties``, where each adapter keeps its largest values, and those of
                the minority sign are left out (Yadav et al., 2023); or ``dare``, where each keeps
                random values (Yu et al., 2023). The last two apply to the submodules; gates, heads
                and norms are averaged plainly.
            density: the share of values that each adapter keeps, in (0, 1]; for the last two.
            seed: of the random values of ``dare``.

        Raises:
            ValueError: plans or heads differ, the method does not suit the plan, or an argument is
                out of range. The message names it.

        Example:
            >>> from lightning_pelt import Adapters, LoRA, Plan
            >>> from lightning_pelt.testing import tiny_bert
            >>> adapters = Adapters(tiny_bert())
            >>> for number, name in enumerate(["ann", "bob"]):
            ...     attachment = adapters.add(name, Plan.uniform(LoRA()), seed=number)
            >>> attachment = adapters.average("mean", ["ann", "bob"], weights=[3, 1])
            >>> attachment = adapters.average("ties", ["ann", "bob"], method="ties", density=0.5)
            >>> adapters.active
            'ties'
        """
        check_name(name, self._kept.entries)
        if not names or isinstance(names, str):
            raise ValueError(f"names is {names!r}, expected the names of adapters, ['ann', 'bob']")
        entries = [self._kept.entry(each) for each in names]
        combine, parts = combination(method, density, seed), shares(weights, len(entries))
        with self.using(None):
            refuse_unequal(names, entries)
            refuse_without_zero(names, entries[0], method)
            self._kept.entries[name] = average(entries, parts, combine)
        self.activate(name)
        return self[name]

    def stack(self, *names: str, name: str | None = None) -> Attachment:
        """Let several adapters act, one after another, and activate them as a new adapter.

        An adapter reads what those before it return: two adapters of a feed-forward are two
        networks in a row, and two LoRAs of one layer add up. The stack is an adapter of a plan with
        the methods of all, named ``ann_lora``, ``bob_adapter``, .... It computes with the weights
        of its adapters themselves, not with copies, so that training it trains them. The head is
        that of the last one.

        Args:
            names: of two or more adapters, in the order in which they act.
            name: of the stack; by default the names with ``+`` between them.

        Raises:
            ValueError: fewer than two names, or one twice; or the plans cannot act together, such
                as two prefixes on one attention, or two plans that train the norms.

        Example:
            >>> from lightning_pelt import Adapter, Adapters, LoRA, Plan
            >>> from lightning_pelt.testing import tiny_bert
            >>> adapters = Adapters(tiny_bert())
            >>> attachment = adapters.add("ann", Plan.uniform(LoRA()))
            >>> attachment = adapters.add("bob", Plan.uniform(Adapter()))
            >>> list(adapters.stack("ann", "bob").submodules), adapters.active
            (['ann_lora', 'bob_adapter'], 'ann+bob')
        """
        name = "+".join(names) if name is None else name
        if len(names) < 2 or len(set(names)) < len(names):
            raise ValueError(
                f"stack{names} has {len(names)} names, expected two or more, all other"
            )
        check_name(name, self._kept.entries)
        entries = {each: self._kept.entry(each) for each in names}
        before = self.active
        plan, last = stacked_plan(entries), entries[names[-1]]
        for each in names:  # parked ones follow the model
            self.activate(each)
        labels = labels_of(last)
        try:
            self.add(name, plan, head=head_of(last), labels=labels)
        except BaseException:
            self._kept.switch(before)
            raise
        with self.using(None):
            share(self._kept.entry(name), entries)
        return self[name]

    @contextmanager
    def rows(self, names: Sequence[str | None]) -> Iterator[None]:
        """Give every row of the batches in a ``with`` block its own adapter, in one forward.

        For adapters with equal plans of LoRA and Adapter, gated or not, and heads of linear layers
        and layer norms.
        Rows without an adapter get the bare base and its head. The weights are stacked once, as
        long as they and the adapters of the batches stay the same. The results carry no gradients
        to the adapters. Other threads that come to such a block wait.

        Args:
            names: of the adapter of each row of the batch; None for none. In ``generate``, of each
                prompt.

        Raises:
            ValueError: there is none of such a name, plans or heads differ, or a method, a trained
                norm, a layer of the head or the mode of the model does not allow it. The message
                names it, and the model is as it was.

        Example:
            >>> import torch
            >>> from lightning_pelt import Adapters, LoRA, Plan
            >>> from lightning_pelt.testing import tiny_bert
            >>> model = tiny_bert().eval()
            >>> adapters = Adapters(model)
            >>> for number, name in enumerate(["ann", "bob"]):
            ...     attachment = adapters.add(name, Plan.uniform(LoRA()), seed=number)
            >>> batch = torch.tensor([[1, 2, 3], [4, 5, 6], [7, 8, 9]])
            >>> with adapters.rows(["bob", "ann", None]):
            ...     logits = model(input_ids=batch).logits
        """
        with mixed_rows(self._kept, names):
            yield
