"""Merging: the base's own layers take in what its submodules have learned."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lightning_pelt.anatomy.calls import is_linear, widths
from lightning_pelt.attach.attachment import Attachment, attachment_of, find_attachments
from lightning_pelt.attach.dequantising import can_dequantise, dequantise, is_affine
from lightning_pelt.attach.layer_changes import change_of
from lightning_pelt.attach.merged_layers import MergedLayer
from lightning_pelt.attach.own_tensors import OwnTensors
from lightning_pelt.attach.tensor_checks import FLOATS
from lightning_pelt.methods.base import Method
from lightning_pelt.methods.gate import GateView
from lightning_pelt.methods.submodule import Submodule, WeightUpdate


def merge(model: nn.Module) -> PreTrainedModel:
    """Write what an attached model has learned into its weights, and remove the submodules.

    The model is then an ordinary one of transformers: ``save_pretrained`` writes all of it, and
    ``from_pretrained`` of its class gives the same outputs. The head and trained norms stay as they
    are.

    A method can be merged if its effect equals a change of weights and biases, as that of LoRA, IA3
    and BitFit, and if it is ungated or behind a constant gate: ``Gate(learned=False)`` at its
    openness, or any gate that a schedule has closed. What a closed gate leaves out changes nothing,
    for methods that cannot be merged too. Several methods on a layer are merged in the order of
    their hooks. A trial with random inputs first shows for every layer that its output follows its
    weight and bias. A model that transformers has quantised is dequantised, as by its
    ``dequantize()``, if its layers equal ordinary ones, such as those of 4 bits of bitsandbytes.

    Raises:
        ValueError: a method cannot be merged, a gate depends on the input, a layer without a bias
            would need one, or a layer does not compute with ordinary weights that are its own, for
            example because they are quantised, sharded or tied; or nothing is attached, or several
            models inside ``model`` are. The model is then as it was.

    Example:
        >>> from lightning_pelt import IA3, LoRA, Plan, attach
        >>> from lightning_pelt.testing import tiny_bert
        >>> model = tiny_bert()
        >>> attachment = attach(model, Plan.uniform(LoRA(), IA3()))
        >>> merge(model) is model
        True
    """
    attachment = attachment_of(model)
    several = find_attachments(model)
    if len(several) > 1:
        raise ValueError(
            f"{type(model).__name__} holds {len(several)} attached models ({', '.join(several)}): "
            f"merge each, merge(module.{next(iter(several))}), ..."
        )
    attachment.refuse_others("merged")
    root = attachment.model
    with torch.no_grad():
        layers = _Layers(attachment)
        quantised = [layers.is_quantised(layer) for layer in layers.tried()]
        for module in attachment.all_submodules:
            module.write()
        if any(quantised):
            layers.dequantise()
        for layer in layers.changed():
            layer.merge()
    if not any(quantised):
        attachment.detach(keep_norms=True)  # what norms have learned is merged as well
    return root


class _Layers:
    """The layers of a model that updates change, one at a time: updates have the size of weights.

    Raises:
        ValueError: a method cannot be merged, or a gate depends on the input.
    """

    def __init__(self, attachment: Attachment) -> None:
        self.attachment, self.root = attachment, attachment.model
        self.tensors = OwnTensors(self.root)
        self.modules: dict[str, list[Submodule]] = {}  # by path of the layer
        for method in attachment.plan.methods:
            _refuse_unmergeable(method, attachment)
        for module in attachment.all_submodules:
            for path in dict.fromkeys(update.path for update in module.weight_updates()):
                self.modules.setdefault(path, []).append(module)
        for path, modules in self.modules.items():
            self.modules[path] = _in_order(self.root.get_submodule(path), modules)

    def changed(self) -> Iterator[MergedLayer]:
        """The layers that change.

        Raises:
            ValueError: a gate is not constant, or an update contains NaN.
        """
        for path, modules in self.modules.items():
            host = self.root.get_submodule(path)
            updates = [
                update
                for module in modules
                for update in module.weight_updates()
                if update.path == path
            ]
            width = widths(host)[1] if is_linear(host) else updates[0].site.d_out
            changes = [change_of(update, _factor(update), width) for update in updates]
            changes = [change for change in changes if change.any]
            if changes:
                yield MergedLayer(host, path, changes, updates[0].site.d_in)

    def tried(self) -> Iterator[MergedLayer]:
        """The layers that change, each after a trial.

        Raises:
            ValueError: a layer cannot be merged into.
        """
        for layer in self.changed():
            self.tensors.refuse_missing_bias(layer)
            if not self.is_quantised(layer):
                self.tensors.refuse_others(layer)
                layer.try_merge()
            elif not is_affine(layer.host, layer.d_in, self._activations(layer)):
                raise ValueError(
                    f"{layer.kind} quantises its inputs too, so that no weight gives its outputs. "
                    "Serve the model with its adapters; or, where outputs may differ, load the "
                    "base again, call its dequantize(), then load_adapters and merge"
                )
            yield layer

    def is_quantised(self, layer: MergedLayer) -> bool:
        """Whether the weight of a layer changes, and has to be dequantised for that."""
        weight = layer.host._parameters.get("weight")
        ordinary = type(weight) is nn.Parameter and weight.dtype in FLOATS
        return "weight" in layer.changed and not ordinary and can_dequantise(self.root)

    def dequantise(self) -> None:
        """Detach, and dequantise the model: its new layers have neither hooks nor submodules."""
        self.attachment.detach(keep_norms=True)
        dequantise(self.root)
        self.tensors = OwnTensors(self.root)
        for layer in self.changed():
            self.tensors.refuse_others(layer)

    def _activations(self, layer: MergedLayer) -> Tensor:
        """A tensor where a layer computes, in the dtype of the model."""
        tensors = [*layer.host.parameters(), *layer.host.buffers()]
        device = tensors[0].device if tensors else self.root.device
        return torch.empty(0, dtype=self.root.dtype, device=device)


def _refuse_unmergeable(method: Method, attachment: Attachment) -> None:
    """Raise unless a method is mergeable and its gates are constant, or all of it is closed."""
    gates = [view for view in attachment.gates.values() if view.method == method.name]
    opened = [view for view in gates if _value(view) != 0]
    kind, modules = type(method).__name__, attachment.submodules.get(method.name, [])
    heads = any(module.sized_by_labels for module in modules)  # which gates do not close
    closed = method.gate is not None and bool(gates) and not opened and not heads
    if not method.mergeable and not closed:
        raise ValueError(
            f"{kind} cannot be merged into the weights: its effect is not a change of weights. "
            "Serve the model with its adapters, or train a plan of LoRA, IA3 and BitFit"
            + (f". Its gates that are not closed: {_few(opened)}" if opened else "")
        )
    if any(_value(view) is None for view in opened):
        raise ValueError(
            f"{method.name!r} is gated: its contribution differs from input to input, so no "
            f"weight can stand for it. Serve it unmerged, or train {kind}(gate=None) or "
            f"{kind}(gate=Gate(learned=False))"
        )


def _few(gates: list[GateView]) -> str:
    more = f" and {len(gates) - 3} more" if len(gates) > 3 else ""
    return f"{', '.join(gate.name for gate in gates[:3])}{more}"


def _value(gate: GateView) -> float | None:
    """The value of a gate that is constant; None if it depends on the input."""
    openness = float(gate.layer.open[gate.index])
    return openness if openness == 0 or not gate.layer.gate.learned else None


def _factor(update: WeightUpdate) -> float:
    """The value of an update's gate, 1 for none.

    Raises:
        ValueError: the gate depends on the input, or is applied to some of the layer's inputs only.
    """
    if update.gate is None:
        return 1.0
    value = _value(update.gate)
    if value is None:
        raise ValueError(f"gate {update.gate.name} depends on the input: it cannot be merged")
    if value and update.site.repeated:
        raise ValueError(
            f"{update.path} runs on several tensors in one forward, such as tokens and positions, "
            f"and the gated {update.gate.method!r} changes its output for one of them: it cannot "
            "be merged. Train it with gate=None, or serve the model with its adapters"
        )
    return value


def _in_order(host: nn.Module, modules: list[Submodule]) -> list[Submodule]:
    """Submodules in the order of their hooks on ``host``; those without one last."""
    owners = [getattr(hook, "__self__", None) for hook in host._forward_hooks.values()]
    places = {id(owner): place for place, owner in enumerate(owners)}
    return sorted(modules, key=lambda module: places.get(id(module), len(places)))
