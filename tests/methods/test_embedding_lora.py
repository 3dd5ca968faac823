"""LoRA of word embeddings against PEFT, and against a table that is changed by hand."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from zoo import build, inputs, output

from lightning_pelt import Gate, LoRA, Plan, attach, merge
from lightning_pelt.anatomy import examine
from lightning_pelt.attach import Attachment
from lightning_pelt.methods._embedding_lora import EmbeddingLoRA
from lightning_pelt.methods._no_resizing import NoResizing
from lightning_pelt.testing import (
    MethodConformance,
    awaken,
    tiny_bert,
    tiny_gpt2,
    tiny_llama,
)

SITES = ("query", "embedding")
IDS = torch.tensor([[5, 6, 7, 5]])


class TestEmbeddingLoRA(MethodConformance):
    compiled = ("llama",)
    method = LoRA(r=4, sites=SITES)

    def models(self) -> dict[str, Callable[[], PreTrainedModel]]:
        return {"bert": tiny_bert, "llama": tiny_llama}  # whose projection is not tied


class TestGatedEmbeddingLoRA(MethodConformance):
    compiled = ("bert",)

    def models(self) -> dict[str, Callable[[], PreTrainedModel]]:
        return {"bert": tiny_bert}

    method = LoRA(r=4, sites=SITES, gate=Gate())


def words(attachment: Attachment) -> dict[str, EmbeddingLoRA]:
    modules = attachment.submodules["lora"]
    return {m.site.path: m for m in modules if isinstance(m, EmbeddingLoRA)}


@pytest.mark.parametrize(
    ("name", "target"),
    [("bert", "word_embeddings"), ("llama", "embed_tokens"), ("gpt2", "wte"), ("t5", None)],
)
def test_equals_peft(name: str, target: str | None) -> None:
    """On T5, whose two stacks share a table, and on GPT-2, whose head is tied to it."""
    peft: Any = pytest.importorskip("peft")
    model, batch = build(name), inputs(name)
    names = ["encoder.embed_tokens", "decoder.embed_tokens"] if target is None else [target]
    config = peft.LoraConfig(r=4, lora_alpha=6, target_modules=names)
    theirs = peft.get_peft_model(copy.deepcopy(model), config).eval()
    attachment = attach(model, Plan.uniform(LoRA(r=4, alpha=6.0, sites=["embedding"])))
    awaken(attachment)
    layers: dict[str, Any] = dict(theirs.base_model.model.named_modules())
    found = words(attachment)
    assert {p for p, m in layers.items() if hasattr(m, "lora_embedding_A")} == set(found)
    for path, module in found.items():
        layers[path].lora_embedding_A["default"].data.copy_(module.words.detach().T)
        layers[path].lora_embedding_B["default"].data.copy_(module.B.detach())
    with torch.no_grad():
        ours, other = output(model, batch), output(theirs, batch)
    torch.testing.assert_close(ours, other, rtol=0, atol=1e-6 * max(1.0, float(other.abs().max())))


@pytest.mark.parametrize("name", ["bert", "llama", "gemma2"])
def test_is_a_changed_table(name: str) -> None:
    """Gemma's module multiplies the rows of its table, and so the update."""
    model, batch = build(name), inputs(name)
    if hasattr(model, "lm_head"):
        model.lm_head = copy.deepcopy(model.lm_head)  # untied
    changed = copy.deepcopy(model)
    attachment = attach(model, Plan.uniform(LoRA(r=4, alpha=6.0, sites=["embedding"])))
    awaken(attachment)
    (module,) = words(attachment).values()
    changed.get_input_embeddings().weight.data += 1.5 * module.words.detach() @ module.B.detach().T
    with torch.no_grad():
        expected = output(changed, batch)
        size = max(1.0, float(expected.abs().max()))
        torch.testing.assert_close(output(model, batch), expected, rtol=0, atol=2e-5 * size)


def test_tied_projection_keeps_its_weights_and_merging_is_refused() -> None:
    """An update of the embeddings changes what is read, and not the projection."""
    model = tiny_gpt2()
    head: Any = model.lm_head
    table = head.weight.detach().clone()
    attachment = attach(model, Plan.uniform(LoRA(r=4, sites=["embedding"])))
    awaken(attachment)
    seen: list[Tensor] = []
    head.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    with torch.no_grad():
        logits = model(IDS).logits
        torch.testing.assert_close(logits, nn.functional.linear(seen[0], table))
    names = list(model.state_dict())
    with pytest.raises(ValueError, match=r"weight of transformer.wte is also that of lm_head"):
        merge(model)
    assert list(model.state_dict()) == names


@pytest.mark.parametrize(
    ("make", "role"), [(tiny_llama, "vocabulary"), (tiny_gpt2, "vocabulary.tied")]
)
def test_projection_onto_the_words_is_a_linear_site(make: Any, role: str) -> None:
    model = make()
    plain = copy.deepcopy(model.lm_head)
    attachment = attach(model, Plan.uniform(LoRA(r=4, alpha=8.0, sites=[role])))
    awaken(attachment)
    up = attachment.submodules["lora"][1]
    A, B = up.factors(up.keys[0])  # type: ignore[operator,index]
    h = torch.randn(2, 3, 32)
    with torch.no_grad():
        model(IDS)
        found = attachment.model.lm_head(h)  # type: ignore[operator]
    torch.testing.assert_close(found, plain(h) + 2.0 * h @ A.T @ B.T, rtol=0, atol=1e-5)


def test_globs_leave_the_embeddings_alone() -> None:
    anatomy = examine(tiny_llama())
    assert [site.role for site in anatomy.embeddings] == ["embedding", "vocabulary"]
    assert not {*anatomy.select(["*"])} & {*anatomy.embeddings}
    with pytest.raises(ValueError, match="embedding"):
        anatomy.select("embeding")


def test_principal_start_of_an_embedding_is_refused() -> None:
    with pytest.raises(ValueError, match="init='pissa' at 'embedding'"):
        attach(tiny_llama(), Plan.uniform(LoRA(init="pissa", sites=["query", "embedding"])))


def test_resizing_is_refused_until_the_last_update_is_removed() -> None:
    model = tiny_llama()
    one, two, three = (NoResizing(model, name) for name in ("one", "two", "three"))
    for gone, left in ((two, "three"), (three, "one")):
        gone.remove()
        with pytest.raises(ValueError, match=left):
            model.resize_token_embeddings(104)
    one.remove()
    assert model.resize_token_embeddings(104).num_embeddings == 104


def test_resizing_under_the_update_is_refused() -> None:
    model = tiny_llama()
    attachment = attach(model, Plan.uniform(LoRA(sites=["embedding"])))
    with pytest.raises(ValueError, match=r"'lora' is attached to the embeddings.*resize before"):
        model.resize_token_embeddings(104)
    attachment.detach()
    assert model.resize_token_embeddings(104).num_embeddings == 104
