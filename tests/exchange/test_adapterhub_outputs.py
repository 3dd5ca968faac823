"""Adapters of AdapterHub compute the same here, to 1e-5, as in adapters 1.3.0."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator

import pytest
import torch
from exchange.adapterhub import FIXTURES, MODELS, base, expected, output

from lightning_pelt import detach, load_adapters, save_adapters
from lightning_pelt.exchange.adapterhub import load_adapterhub

# Refused by name, each with the word of the message that names it.
REFUSED = {
    "adapter_plus": "original_ln_before",
    "dora": "use_dora",
    "gated_ia3": "use_gating",
    "inverse": "inv_adapter",
    "ln_after": "ln_after",
    "no_rule": "phm_rule",
}
REFUSED_ON = {
    ("t5", "prefix_leave_out"): "loses its relative positions",
    **{(name, "prefix"): "cannot take a prefix" for name in ("deberta", "deberta_v2")},
    **{(name, "prompt"): "attend to padding" for name in ("deberta", "deberta_v2")},
    ("deberta", "unipelt"): "use_gating",
}


def refusal(name: str, kind: str) -> str | None:
    if (name, kind) == ("vit", "adapter_plus"):  # without norms after the sum, it is 'pfeiffer'
        return None
    return REFUSED_ON.get((name, kind), REFUSED.get(kind))


def folders() -> Iterator[tuple[str, str]]:
    for name in MODELS:
        for folder in sorted((FIXTURES / name).iterdir()):
            if folder.is_dir() and folder.name != "base":
                yield name, folder.name


LOADED = [pair for pair in folders() if refusal(*pair) is None]
NOT_LOADED = [pair for pair in folders() if refusal(*pair)]


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*masks these tokens out.*")
        yield


@pytest.mark.sample(3)
@pytest.mark.parametrize(("name", "kind"), LOADED)
def test_outputs_are_those_of_adapterhub(name: str, kind: str) -> None:
    inputs, wanted = expected(name)
    model = base(name)
    torch.testing.assert_close(output(model, inputs), wanted["base"], atol=1e-5, rtol=0)
    words = wanted["base"].shape[1]  # a prompt stays in front of the outputs of the words
    assert (wanted[kind][:, -words:] - wanted["base"]).abs().max() > 0.01
    load_adapterhub(model, FIXTURES / name / kind)
    torch.testing.assert_close(output(model, inputs), wanted[kind], atol=1e-5, rtol=0)


@pytest.mark.parametrize(("name", "kind"), NOT_LOADED)
def test_what_no_plan_computes_is_refused_by_name(name: str, kind: str) -> None:
    inputs, wanted = expected(name)
    model = base(name)
    with pytest.raises(ValueError, match=refusal(name, kind)):
        load_adapterhub(model, FIXTURES / name / kind)
    torch.testing.assert_close(output(model, inputs), wanted["base"], atol=1e-5, rtol=0)
    assert not any(".pelt." in key for key in model.state_dict())
    assert any(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize(("name", "kind"), [("gpt2", "prefix"), ("bert", "prompt")])
def test_what_the_default_attention_of_adapterhub_hides_is_named(name: str, kind: str) -> None:
    with pytest.warns(UserWarning, match="attn_implementation='eager'"):
        load_adapterhub(base(name), FIXTURES / name / kind)


def test_a_union_of_all_kinds_survives_saving_loading_and_detaching(tmp_path) -> None:
    inputs, wanted = expected("bert")
    model = base("bert")
    attachment = load_adapterhub(model, FIXTURES / "bert" / "unipelt")
    assert sorted(attachment.submodules) == ["adapter", "lora", "prefix"]
    assert {view.layer.pool for view in attachment.gates.values()} == {"all"}
    again = base("bert")
    load_adapters(again, save_adapters(model, tmp_path))
    torch.testing.assert_close(output(again, inputs), wanted["unipelt"], atol=1e-5, rtol=0)
    detach(model)
    torch.testing.assert_close(output(model, inputs), wanted["base"], atol=1e-5, rtol=0)


def test_a_prompt_survives_saving_and_detaching(tmp_path) -> None:
    inputs, wanted = expected("bert")
    model = base("bert")
    load_adapterhub(model, FIXTURES / "bert" / "prompt")
    again = base("bert")
    load_adapters(again, save_adapters(model, tmp_path))
    torch.testing.assert_close(output(again, inputs), wanted["prompt"], atol=1e-5, rtol=0)
    with torch.no_grad():
        shape = model(inputs["input_ids"]).last_hidden_state.shape  # without a mask
    assert shape == wanted["prompt"].shape
    detach(model)
    torch.testing.assert_close(output(model, inputs), wanted["base"], atol=1e-5, rtol=0)


def test_a_folder_can_be_loaded_again_and_another_one_cannot() -> None:
    inputs, wanted = expected("bert")
    model = base("bert")
    attachment = load_adapterhub(model, FIXTURES / "bert" / "seq_bn")
    with torch.no_grad():
        for group in attachment.parameter_groups().values():
            for parameter in group:
                parameter.zero_()
    assert load_adapterhub(model, FIXTURES / "bert" / "seq_bn") is attachment
    torch.testing.assert_close(output(model, inputs), wanted["seq_bn"], atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="another plan already"):
        load_adapterhub(model, FIXTURES / "bert" / "par_bn")
    torch.testing.assert_close(output(model, inputs), wanted["seq_bn"], atol=1e-5, rtol=0)


def test_it_trains_further() -> None:
    inputs, _ = expected("bert")
    model = base("bert")
    attachment = load_adapterhub(model, FIXTURES / "bert" / "unipelt")
    model(**inputs).last_hidden_state.square().sum().backward()
    groups = attachment.parameter_groups()
    assert groups.keys() >= {"adapter", "lora", "prefix", "gate"}
    assert all(p.grad is not None for group in groups.values() for p in group)


def test_a_module_around_the_model_and_half_precision() -> None:
    inputs, wanted = expected("gpt2")
    model = base("gpt2").to(torch.bfloat16)
    load_adapterhub(torch.nn.ModuleDict({"inner": model}), FIXTURES / "gpt2" / "double_seq_bn")
    found = output(model, inputs)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), wanted["double_seq_bn"], atol=0.1, rtol=0.05)


def test_old_names_and_old_scales(tmp_path) -> None:
    """Files of adapter-transformers name modules otherwise, and its LoRA ignored alpha."""
    from safetensors.torch import load_file, save_file

    def copy(kind: str, change, rename=lambda key: key) -> str:
        folder = tmp_path / kind
        folder.mkdir()
        whole = json.loads((FIXTURES / "roberta" / kind / "adapter_config.json").read_text())
        change(whole)
        (folder / "adapter_config.json").write_text(json.dumps(whole))
        tensors = load_file(FIXTURES / "roberta" / kind / "adapter.safetensors")
        save_file({rename(k): t for k, t in tensors.items()}, folder / "adapter.safetensors")
        return str(folder)

    def capitals(whole) -> None:
        config = whole["config"]
        del whole["version"]  # whose "relu" is that of today
        for old, new in (("MH_Adapter", "mh_adapter"), ("LN_before", "ln_before")):
            config[old] = config.pop(new)

    inputs, wanted = expected("roberta")
    model = base("roberta")
    folder = copy(
        "seq_bn",
        capitals,
        lambda k: k.replace("output.adapters", "output.layer_text_task_adapters"),
    )
    load_adapterhub(model, folder)
    torch.testing.assert_close(output(model, inputs), wanted["seq_bn"], atol=1e-5, rtol=0)

    model = base("roberta")
    folder = copy("lora", lambda whole: whole.update(version="adapters.1.0.1"))
    attachment = load_adapterhub(model, folder)
    (method,) = attachment.plan.methods
    assert (method.r, method.alpha) == (2, 2)
