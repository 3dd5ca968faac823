"""State dicts of wrapped models load into plain ones, and the reverse."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.nn.parallel import DistributedDataParallel

from lightning_pelt import LoRA, UniPELT, attach
from lightning_pelt.testing import awaken, tiny_bert

TOKENS = torch.arange(3, 19).view(2, 8)
PLAN = UniPELT([LoRA(r=2)], norms=True)


class Holder(nn.Module):
    """Somebody's module: an encoder, and a layer of its own."""

    def __init__(self, encoder: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.encoder, self.head = encoder, head

    def forward(self) -> Tensor:
        with torch.no_grad():
            return self.head(self.encoder(input_ids=TOKENS).logits)


def compiled(module: nn.Module) -> Any:
    return torch.compile(module, backend="eager")


def blocks(wrap: Callable[[nn.Module], Any], model: Any) -> Any:
    layers = model.bert.encoder.layer
    for index, layer in enumerate(layers):
        layers[index] = wrap(layer)
    return model


@pytest.fixture(autouse=True)
def eager() -> Iterator[None]:
    """Compiled modules run eagerly: only their names matter here."""
    with torch.compiler.set_stance("force_eager"):
        yield


@pytest.fixture(scope="module")
def one_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    store = torch.distributed.FileStore(str(tmp_path_factory.mktemp("group") / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


WRAPS: dict[str, Callable[[nn.Module], Any]] = {
    "plain": lambda model: model,
    "compiled": compiled,
    "compiled blocks": lambda model: blocks(compiled, model),
    "checkpointed blocks": lambda model: blocks(checkpoint_wrapper, model),
    "ddp": DistributedDataParallel,
}


def holder(wrap: str, seed: int, *, attach_first: bool) -> Holder:
    model: Any = tiny_bert()
    torch.manual_seed(seed)
    head: Any = nn.Linear(3, 3)
    if attach_first:
        attach(model, PLAN)
    module = Holder(WRAPS[wrap](model), compiled(head) if wrap == "compiled" else head)
    attachment = attach(module, PLAN)
    awaken(attachment, seed=seed)
    with torch.no_grad():
        model.classifier.bias.add_(seed)
    return module


@pytest.mark.usefixtures("one_process")
@pytest.mark.sample(3)
@pytest.mark.parametrize("attach_first", [True, False], ids=["wrapped later", "wrapped before"])
@pytest.mark.parametrize("there", WRAPS)
@pytest.mark.parametrize("here", WRAPS)
def test_any_pair_loads(there: str, here: str, attach_first: bool) -> None:
    source = holder(there, 1, attach_first=attach_first)
    target = holder(here, 2, attach_first=attach_first)
    expected = source()
    assert not torch.allclose(target(), expected)
    state = copy.deepcopy(source.state_dict())
    assert not any("word_embeddings" in name for name in state)
    target.load_state_dict(state, strict=False)
    assert torch.equal(target(), expected)


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module."])
def test_the_model_alone_reads_the_names_of_wrappers(prefix: str) -> None:
    """And refuses others, rather than load nothing."""
    model = tiny_bert()
    attach(model, PLAN)
    state = copy.deepcopy(model.state_dict())
    model.load_state_dict({prefix + name: tensor for name, tensor in state.items()})
    holder = nn.ModuleDict({"inner": model})
    with pytest.raises(RuntimeError, match="It lacks"):
        holder.load_state_dict({f"outer.{name}": t for name, t in state.items()}, strict=False)


def test_norms_of_compiled_blocks_are_trained() -> None:
    plain, wrapped = tiny_bert(), blocks(compiled, tiny_bert())
    sizes = [
        {name: len(group) for name, group in attach(model, PLAN).parameter_groups().items()}
        for model in (plain, wrapped)
    ]
    assert sizes[0] == sizes[1]
    assert sizes[0]["norm"] == 10


def test_an_ambiguous_name_is_not_guessed() -> None:
    """Two tensors that differ only by ``module`` in their names."""
    module = Holder(tiny_bert(), nn.Linear(3, 3))
    module.head.module = nn.Linear(3, 3)  # type: ignore[assignment]
    attach(module, PLAN)
    state = module.state_dict()
    before = module.head.weight.detach().clone()
    state["module.head.weight"] = state.pop("head.weight") + 1
    assert module.load_state_dict(state, strict=False).missing_keys == ["head.weight"]
    assert torch.equal(module.head.weight, before)


def test_a_path_may_leave_out_the_wrapper() -> None:
    module = nn.ModuleDict({"a": compiled(tiny_bert()), "b": tiny_bert()})
    assert attach(module, PLAN, path="a").model is module["a"]._orig_mod
