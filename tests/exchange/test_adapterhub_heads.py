"""Heads of AdapterHub are loaded where the model has the same head, and named where not."""

from __future__ import annotations

import pytest
import torch
import transformers
from exchange.adapterhub import FIXTURES, base, expected
from safetensors.torch import load_file

from lightning_pelt.exchange.adapterhub import load_adapterhub

HEADS = {
    "bert_head": "BertForSequenceClassification",
    "bert_static": "BertForSequenceClassification",
    "bert_tagging": "BertForTokenClassification",
    "bert_answers": "BertForQuestionAnswering",
    "roberta_head": "RobertaForSequenceClassification",
    "deberta_v2_head": "DebertaV2ForSequenceClassification",
    "vit_head": "ViTForImageClassification",
}


def model_of(folder: str):
    name = next(n for n in ("deberta_v2", "roberta", "bert", "vit") if folder.startswith(n))
    labels = {} if folder == "bert_answers" else {"num_labels": 3}
    return name, base(name, getattr(transformers, HEADS[folder]), **labels)


@pytest.mark.parametrize("folder", HEADS)
def test_logits_are_those_of_adapterhub(folder: str) -> None:
    name, model = model_of(folder)
    load_adapterhub(model, FIXTURES / folder)
    inputs, _ = expected(name)
    with torch.no_grad():
        found = model(**inputs)
    logits = found.logits if "logits" in found else found.start_logits
    wanted = load_file(FIXTURES / folder / "expected.safetensors")["logits"]
    torch.testing.assert_close(logits, wanted, atol=1e-5, rtol=0)


def test_another_head_stays_and_a_warning_names_it() -> None:
    model = base("bert", transformers.BertForSequenceClassification, num_labels=3)
    before = model.classifier.weight.detach().clone()
    with pytest.warns(UserWarning, match="layers=2, activation_function='tanh'"):
        load_adapterhub(model, FIXTURES / "bert_two_layers")
    assert torch.equal(before, model.classifier.weight)
    with pytest.warns(UserWarning, match="BertModel has another one or none"):
        load_adapterhub(base("bert"), FIXTURES / "bert_head")


def test_another_number_of_labels_is_refused_and_the_model_is_as_it_was() -> None:
    model = base("bert", transformers.BertForSequenceClassification, num_labels=2)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ValueError, match=r"classifier.bias is \(3,\) there and \(2,\) here"):
        load_adapterhub(model, FIXTURES / "bert_head")
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_labels_with_other_names_give_a_warning() -> None:
    labels = {0: "no", 1: "yes", 2: "well"}
    model = base(
        "bert",
        transformers.BertForSequenceClassification,
        id2label=labels,
        label2id={name: number for number, name in labels.items()},
    )
    with pytest.warns(UserWarning, match="has the labels"):
        load_adapterhub(model, FIXTURES / "bert_head")
