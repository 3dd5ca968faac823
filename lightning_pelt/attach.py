"""``attach``: the one place where a model is changed, and where the change is undone."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from lightning_pelt import ownership
from lightning_pelt.anatomy import Anatomy, Site, Source, examine
from lightning_pelt.gate import GateLayer, GateView, Padding, Pool
from lightning_pelt.method import Method, Part, Place
from lightning_pelt.plan import Plan
from lightning_pelt.submodule import Removable, Submodule

CHILD = "pelt"  # the name under which every host keeps its submodules


@dataclass(frozen=True)
class MethodCount:
    """Numbers of parameters of one method: in training, deployed, and of its gates."""

    trained: int
    deployed: int
    gates: int


class Attachment:
    """A model with a plan attached to it.

    Attributes:
        model: the Hugging Face model.
        plan: what was attached.
        anatomy: the sites that were found in the model.
        owned: state-dict names that belong to us: submodules, gates and head.
        base: state-dict names of the frozen base.
        gates: every gate by name, ``07/lora.query``.
        counts: numbers of parameters by method name.
        head: names of the head's parameters.
        backbone_size, head_size: numbers of parameters of the base and of the head.
    """

    def __init__(self, model: PreTrainedModel, plan: Plan, anatomy: Anatomy) -> None:
        self.model, self.plan, self.anatomy = model, plan, anatomy
        self.gates: dict[str, GateView] = {}
        self.counts: dict[str, MethodCount] = {}
        self.owned: frozenset[str] = frozenset()
        self.base: frozenset[str] = frozenset()
        self.backbone_size = 0
        self.head_size = 0
        self.submodules: dict[str, list[Submodule]] = {}
        self.head: frozenset[str] = frozenset()
        self._handles: list[Removable] = []
        self._hosts: list[nn.Module] = []
        self._trained_before: dict[str, bool] = {}

    def parameters_of(self, method: str) -> list[nn.Parameter]:
        """The weights of a method and of its gates."""
        gates = [view for view in self.gates.values() if view.method == method]
        return self._weights(method) + [p for view in gates for p in view.parameters()]

    def _weights(self, method: str) -> list[nn.Parameter]:
        return list(
            dict.fromkeys(
                p for module in self.submodules.get(method, ()) for p in module.parameters()
            )
        )

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Trained parameters by group: one per method, then ``gate``, ``head`` and ``base``."""
        groups = {method: self._weights(method) for method in self.submodules}
        gates = [p for view in self.gates.values() for p in view.parameters()]
        groups["gate"] = list(dict.fromkeys(gates))
        # By name: FSDP2 replaces parameters, and so does a move to another dtype.
        named = [(ownership.plain(n), p) for n, p in self.model.named_parameters()]
        groups["head"] = [parameter for name, parameter in named if name in self.head]
        if self.plan.train_base:
            known = {p for group in groups.values() for p in group}
            groups["base"] = [parameter for _, parameter in named if parameter not in known]
        # In the model's order: FSDP's optimizer states come back sorted by it.
        order = {parameter: number for number, parameter in enumerate(self.model.parameters())}
        return {name: sorted(group, key=order.__getitem__) for name, group in groups.items() if group}

    def train(self, *, base_dropout: bool = True) -> None:
        """Train mode for submodules and head; for the base too, where its dropout is wanted.

        ``from_pretrained`` gives a model in eval mode, and Lightning leaves it there.
        """
        self.model.train(base_dropout or self.plan.train_base)
        for modules in self.submodules.values():
            for module in modules:
                module.train()
        for name in self.head:
            self.model.get_submodule(name.rpartition(".")[0]).train()

    def detach(self) -> None:
        """Take everything off: hooks, submodules, and the freezing."""
        for handle in self._handles:
            handle.remove()
        for host in self._hosts:
            if CHILD in host._modules:
                delattr(host, CHILD)
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(self._trained_before.get(name, True))
        self.model.__dict__.pop("pelt_attachment", None)

    def __repr__(self) -> str:
        trained = sum(count.trained + count.gates for count in self.counts.values())
        return f"Attachment({self.plan}, {trained:,} parameters, {len(self.gates)} gates)"


def find_attachment(module: nn.Module) -> Attachment | None:
    """The attachment of the model inside ``module``, if there is one."""
    for child in module.modules():
        if "pelt_attachment" in child.__dict__:
            return child.__dict__["pelt_attachment"]
    return None


def find_model(module: nn.Module, path: str | None = None) -> PreTrainedModel:
    """The outermost Hugging Face model inside ``module``, or the one at ``path``.

    Raises:
        ValueError: there is none, or several side by side and no path.
    """
    models = {n: m for n, m in module.named_modules() if isinstance(m, PreTrainedModel)}
    outermost = [n for n in models if not any(n != o and _inside(n, o) for o in models)]
    listed = ", ".join(name or "(the module itself)" for name in outermost) or "none"
    if path is not None:
        if path not in models:
            raise ValueError(f"there is no Hugging Face model at {path!r}: there is {listed}")
        return models[path]
    if len(outermost) != 1:
        raise ValueError(
            f"{type(module).__name__} holds {len(outermost)} Hugging Face models ({listed}), and "
            "one is needed: name it, e.g. PELTCallback(plan, path='encoder')"
        )
    return models[outermost[0]]


def _inside(name: str, other: str) -> bool:
    return other == "" or name.startswith(f"{other}.")


def attach(
    model: nn.Module,
    plan: Plan,
    *,
    seed: int = 0,
    path: str | None = None,
    head: Sequence[str] | None = None,
) -> Attachment:
    """Freeze a Hugging Face model and attach the submodules of ``plan`` to it.

    The model is changed in place; its base parameters keep their names. New heads, which lie
    outside the base and are not tied to its vocabulary, stay trainable. Attaching an equal plan
    again does nothing.

    Args:
        model: a Hugging Face model, or a module that holds one.
        plan: what goes where.
        seed: of the new weights; the global random state is left alone. All processes of a run
            start alike.
        path: of the model inside ``model``, where there are several.
        head: paths of modules of the Hugging Face model that are trained as its head. By default
            whatever lies outside the base, unless it is a pretrained vocabulary projection.

    Raises:
        ValueError: the plan does not fit the model, or another plan is attached already.
    """
    model = find_model(model, path)
    attached: Attachment | None = model.__dict__.get("pelt_attachment")
    if attached is not None:
        if attached.plan == plan:
            return attached
        raise ValueError(
            f"the model has another plan already: {attached.plan}, asked for {plan}. Take the "
            "first off with `detach(model)`, or put both into one Plan."
        )
    anatomy = examine(model)
    placed = plan.place(anatomy)
    attachment = Attachment(model, plan, anatomy)
    _freeze(attachment, head)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            _Builder(attachment).build(placed)
        except BaseException:
            attachment.detach()
            raise
    attachment.owned = frozenset(model.state_dict()) - attachment.base
    model.__dict__["pelt_attachment"] = attachment
    attachment._handles += ownership.install(model)
    return attachment


def detach(model: nn.Module) -> None:
    """Undo :func:`attach`.

    Raises:
        ValueError: nothing is attached.
    """
    attachment = find_attachment(model)
    if attachment is None:
        raise ValueError(f"nothing is attached to {type(model).__name__}")
    attachment.detach()


def _head(model: PreTrainedModel, paths: Sequence[str] | None) -> frozenset[str]:
    """Names of the head: below ``paths``, or outside the base where there is no vocabulary."""
    named = dict(model.named_parameters(remove_duplicate=False))
    if paths is not None:
        for path in paths:
            model.get_submodule(path)
        return frozenset(name for name in named if any(_inside(name, path) for path in paths))
    if model.get_output_embeddings() is not None:
        return frozenset()
    base = set(model.base_model.parameters())
    return frozenset(name for name, parameter in named.items() if parameter not in base)


def _freeze(attachment: Attachment, head_paths: Sequence[str] | None) -> None:
    """Freeze the base; a head that was newly put on it keeps training."""
    model, plan = attachment.model, attachment.plan
    attachment._trained_before = {n: p.requires_grad for n, p in model.named_parameters()}
    attachment.head = _head(model, head_paths)
    for name, parameter in model.named_parameters():
        in_head = name in attachment.head
        parameter.requires_grad_(plan.train_base or in_head)
        attachment.head_size += parameter.numel() if in_head else 0
        attachment.backbone_size += 0 if in_head else parameter.numel()
    if not plan.train_base:
        attachment.base = frozenset(model.state_dict()) - attachment.head


class _Builder:
    """Builds the submodules of a placed plan and puts them on the model."""

    def __init__(self, attachment: Attachment) -> None:
        self.attachment = attachment
        self.model, self.anatomy = attachment.model, attachment.anatomy
        self.padding: dict[tuple[str, int], Padding] = {}
        self.taken: dict[str, set[str]] = {}

    def build(self, placed: Sequence[tuple[int, Method, list[Site]]]) -> None:
        gates = _Gates(self, placed)
        for number, method, sites in placed:
            suffix = f"_g{number}" if len(self.attachment.plan.groups) > 1 else ""
            shared = {}
            for part in method.build_shared(self.anatomy, sites):
                shared[part.key] = part.module
                self.put(part._replace(key=part.key + suffix), method.name)
            for same in _by_source(sites):
                place = Place(same, tuple(gates.of(method, site) for site in same), shared)
                for part in method.build(place):
                    self.put(part, method.name)
            self.count(method, sites)

    def put(self, part: Part, method: str | None) -> None:
        """Register a part as a child of its host and install its hooks."""
        host = self.model.get_submodule(part.path)
        if not hasattr(host, CHILD):
            host.add_module(CHILD, nn.ModuleDict())
            self.attachment._hosts.append(host)
        children: nn.ModuleDict = getattr(host, CHILD)
        key, count = part.key.replace(".", "_"), 2
        while key in children:
            key, count = f"{part.key.replace('.', '_')}_{count}", count + 1
        nearest = next(self.model.get_submodule(part.path).parameters(), None)
        device = self.model.device if nearest is None else nearest.device
        children[key] = part.module.to(device)
        self.attachment._handles += part.module.install(self.model)
        if method is not None:
            self.attachment.submodules.setdefault(method, []).append(part.module)

    def padding_of(self, site: Site) -> Padding | None:
        """The keeper of the attention mask in the block of ``site``."""
        if site.block is None or (site.stack, site.block) not in self.anatomy.masks:
            return None
        where = (site.stack, site.block)
        if where not in self.padding:
            self.padding[where] = Padding(self.anatomy.masks[where])
            self.attachment._handles += self.padding[where].install(self.model)
        return self.padding[where]

    def count(self, method: Method, sites: Sequence[Site]) -> None:
        counts = self.attachment.counts
        before = counts.get(method.name, MethodCount(0, 0, 0))
        total = sum(p.numel() for p in self.attachment._weights(method.name))
        views = [view for view in self.attachment.gates.values() if view.method == method.name]
        parameters = {p for view in views for p in view.parameters()}
        deployed = before.deployed + method.deployed(sites, total - before.trained)
        gates = sum(p.numel() for p in parameters)
        counts[method.name] = MethodCount(total, deployed, gates)


class _Gates:
    """Makes the gates of a plan; all that read one tensor in one way share a layer."""

    def __init__(self, builder: _Builder, placed: Sequence[tuple[int, Method, list[Site]]]) -> None:
        self.builder = builder
        self.views: dict[tuple[int, Site], GateView] = {}
        reading: dict[tuple[Any, ...], list[tuple[str, Method, list[Site]]]] = {}
        for method, name, sites in self._named(placed):
            assert method.gate is not None
            own = () if method.gate_width(sites[0]) is None else (name,)
            alike = dataclasses.replace(method.gate, shared=False)
            key = (sites[0].source, alike, self._pool(method, sites[0]), *own)
            reading.setdefault(key, []).append((name, method, sites))
        for (source, _, pool, *own_name), members in reading.items():
            self._layer(source, pool, members, own=bool(own_name))
        order = sorted(self.builder.attachment.gates.items(), key=lambda item: item[1].block)
        self.builder.attachment.gates = dict(order)

    def _named(
        self, placed: Sequence[tuple[int, Method, list[Site]]]
    ) -> Iterator[tuple[Method, str, list[Site]]]:
        """Every gate once: its method, its name, and the sites that it gates."""
        names: set[str] = set()
        for _, method, sites in placed:
            if method.gate is None:
                continue
            labels = {site.role for site in sites}
            for same in _by_source(sites):
                for gated in [list(same)] if method.gate.shared else [[site] for site in same]:
                    single = len(labels) == 1 or len(gated) > 1
                    site = method.name if single else f"{method.name}.{gated[0].label}"
                    base = name = f"{self.builder.anatomy.block_label(gated[0])}/{site}"
                    count = 2
                    while name in names:
                        name, count = f"{base}_{count}", count + 1
                    names.add(name)
                    yield method, name, gated

    def _pool(self, method: Method, site: Site) -> Pool:
        assert method.gate is not None
        if site.role in (
            "norm",
            "linear",
        ):  # may run before the block's mask is known, or see one token
            return "token"
        if method.gate.pool != "auto":
            return method.gate.pool
        return "token" if self.builder.anatomy.stack(site.stack).causal else "masked"

    def _layer(
        self,
        source: Source,
        pool: Pool,
        members: list[tuple[str, Method, list[Site]]],
        *,
        own: bool,
    ) -> None:
        sites = [name.partition("/")[2] for name, _, _ in members]
        _, method, gated = members[0]
        assert method.gate is not None
        width = method.gate_width(gated[0])
        layer = GateLayer(
            source.width if width is None else width, sites, gate=method.gate, pool=pool
        )
        layer.padding = self.builder.padding_of(gated[0]) if pool == "masked" else None
        layer.source = None if own else source
        host = gated[0].path if own else source.path
        self.builder.put(Part(host, f"gate_{sites[0]}" if own else f"gate_{pool}", layer), None)
        for index, (name, method, gated) in enumerate(members):
            view = GateView(name, method.name, layer, index)
            self.builder.attachment.gates[name] = view
            for site in gated:
                self.views[id(method), site] = view

    def of(self, method: Method, site: Site) -> GateView | None:
        return self.views.get((id(method), site))


def _by_source(sites: Sequence[Site]) -> list[tuple[Site, ...]]:
    """Sites grouped by block and by the tensor they read, in network order."""
    groups: dict[tuple[str, int | None, Source], list[Site]] = {}
    for site in sites:
        groups.setdefault((site.stack, site.block, site.source), []).append(site)
    return [tuple(group) for group in groups.values()]
