"""Writes ``adapterhub_fixtures/``: tiny models, adapters of AdapterHub, and what both compute.

AdapterHub's library needs transformers 4.57, and so an environment of its own::

    python -m venv hub
    hub/bin/pip install torch adapters==1.3.0
    hub/bin/python tests/exchange/make_adapterhub_fixtures.py

For every model there is a folder with ``base/`` (``save_pretrained``), one folder per adapter
(``save_adapter``), and ``expected.safetensors`` with the inputs and, for every adapter, the output
of adapters 1.3.0.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import torch
import transformers
from safetensors.torch import save_file
from torch import nn

try:
    import adapters
except ImportError:  # in the environment of the tests, where pytest looks for doctests
    adapters = None

HERE = Path(__file__).parent / "adapterhub_fixtures"
LENGTH, VOCABULARY = 6, 40
ATTENTION = "eager"
BARE = ("seq_bn", "lora", "prefix", "no_rule")  # saved from a base without a place for heads
TEXT = {"vocab_size": VOCABULARY, "max_position_embeddings": 40}
BERT = {
    **TEXT,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
}
T5 = {
    "vocab_size": VOCABULARY,
    "d_model": 16,
    "d_kv": 8,
    "d_ff": 24,
    "num_layers": 2,
    "num_heads": 2,
    "relative_attention_num_buckets": 8,
}
DEBERTA = {**BERT, "relative_attention": True, "pos_att_type": ["p2c", "c2p"], "type_vocab_size": 0}

MODELS: dict[str, tuple[str, dict]] = {
    "bert": ("BertModel", BERT),
    "roberta": ("RobertaModel", BERT),
    "xlm_roberta": ("XLMRobertaModel", BERT),
    "distilbert": (
        "DistilBertModel",
        {**TEXT, "dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24},
    ),
    "llama": ("LlamaModel", {**BERT, "num_key_value_heads": 1}),
    "gpt2": (
        "GPT2Model",
        {"vocab_size": VOCABULARY, "n_positions": 40, "n_embd": 16, "n_layer": 2, "n_head": 2},
    ),
    "t5": ("T5Model", T5),
    "t5_gated": ("T5Model", {**T5, "feed_forward_proj": "gated-gelu"}),
    "bart": (
        "BartModel",
        {
            **TEXT,
            "d_model": 16,
            **{f"{s}_{k}": v for s in ("encoder", "decoder")
               for k, v in (("layers", 2), ("attention_heads", 2), ("ffn_dim", 24))},
        },
    ),
    "deberta": ("DebertaModel", DEBERTA),
    "deberta_v2": ("DebertaV2Model", {**DEBERTA, "position_buckets": 4, "share_att_key": True}),
    "vit": (
        "ViTModel",
        {
            "hidden_size": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 24,
            "image_size": 8,
            "patch_size": 4,
        },
    ),
}  # fmt: skip


def kinds() -> dict[str, object]:
    """The configurations of the adapters by name."""
    prefix = {"prefix_length": 3, "bottleneck_size": 8}
    small = {"reduction_factor": 4}
    return {
        "seq_bn": adapters.SeqBnConfig(**small),
        "double_seq_bn": adapters.DoubleSeqBnConfig(**small),
        "par_bn": adapters.ParBnConfig(**small),
        "lora": adapters.LoRAConfig(
            r=2, alpha=6, intermediate_lora=True, output_lora=True, attn_matrices=["q", "k", "v"]
        ),
        "ia3": adapters.IA3Config(),
        "prefix": adapters.PrefixTuningConfig(**prefix),
        "prompt": adapters.PromptTuningConfig(prompt_length=3),
        "unipelt": adapters.UniPELTConfig(
            adapters.PrefixTuningConfig(**prefix),
            adapters.SeqBnConfig(**small),
            adapters.LoRAConfig(r=2, alpha=2),
        ),
        "compacter": adapters.CompacterConfig(**small),
        "compacter_pp": adapters.CompacterPlusPlusConfig(**small),
        "mam": adapters.MAMConfig(
            adapters.PrefixTuningConfig(**prefix), adapters.ParBnConfig(**small)
        ),
    }


def special() -> dict[str, object]:
    """Options that are rare; tested on BERT alone."""
    return {
        "prefix_flat": adapters.PrefixTuningConfig(prefix_length=3, flat=True),
        "per_layer": adapters.SeqBnConfig(reduction_factor={"0": 2, "default": 4}),
        "leave_out": adapters.DoubleSeqBnConfig(reduction_factor=4, leave_out=[0]),
        "scaled_par_bn": adapters.ParBnConfig(reduction_factor=4, scaling="learned"),
        "channel": adapters.SeqBnConfig(
            reduction_factor=4, scaling="channel", non_linearity="gelu_new"
        ),
        "own_rules": adapters.CompacterConfig(reduction_factor=4, shared_phm_rule=False),
        "phm": adapters.CompacterConfig(reduction_factor=4, factorized_phm_W=False, phm_dim=2),
        "factorized_rule": adapters.CompacterConfig(reduction_factor=4, factorized_phm_rule=True),
        "lora_qv": adapters.LoRAConfig(r=2, alpha=5),
        "ia3_all": adapters.IA3Config(output_lora=True, attn_matrices=["q", "k", "v"]),
        "prompt_after": adapters.PromptTuningConfig(prompt_length=3, combine="prefix_after_bos"),
        "union": adapters.ConfigUnion(
            adapters.SeqBnConfig(reduction_factor=8),
            adapters.LoRAConfig(r=2, attn_matrices=["k"], leave_out=[1]),
        ),
        # What is refused.
        "no_rule": adapters.CompacterConfig(reduction_factor=4),
        "adapter_plus": adapters.AdapterPlusConfig(reduction_factor=4, stochastic_depth=0.0),
        "ln_after": adapters.SeqBnConfig(reduction_factor=4, ln_after=True),
        "inverse": adapters.SeqBnConfig(
            reduction_factor=4, inv_adapter="nice", inv_adapter_reduction_factor=2
        ),
        "dora": adapters.LoRAConfig(r=2, use_dora=True),
        "gated_ia3": adapters.IA3Config(use_gating=True),
    }


MORE = {
    "bert": special,
    "gpt2": lambda: {"lora_qv": adapters.LoRAConfig(r=2, alpha=5)},
    "vit": lambda: {
        "adapter_plus": adapters.AdapterPlusConfig(reduction_factor=4, stochastic_depth=0.0),
    },
    "t5": lambda: {
        "cross": adapters.DoubleSeqBnConfig(reduction_factor=4, cross_adapter=True),
        "leave_out": adapters.SeqBnConfig(reduction_factor=4, leave_out=[1, 2]),
        # Relative positions count the prefix, and some blocks have none.
        "prefix_flat": adapters.PrefixTuningConfig(prefix_length=5, flat=True, leave_out=[0, 1]),
        "prefix_leave_out": adapters.PrefixTuningConfig(
            prefix_length=3, bottleneck_size=8, leave_out=[1]
        ),
    },
    "bart": lambda: {
        "cross": adapters.DoubleSeqBnConfig(reduction_factor=4, cross_adapter=True),
        "prefix_leave_out": adapters.PrefixTuningConfig(
            prefix_length=3, bottleneck_size=8, leave_out=[0], cross_prefix=False
        ),
    },
}
ONLY = {"t5_gated": ("lora", "ia3", "seq_bn")}
EXCEPT = {  # what is refused for the reason for which a prefix alone is
    "deberta": ("mam",),
    "deberta_v2": ("unipelt", "mam"),
}


def perturb(module: nn.Module, *, std: float) -> None:
    """Move all parameters away from values that have no effect."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) * std)


def perturb_adapter(model: nn.Module, base: set[str]) -> None:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not any(name == b or name.endswith(f".{b}") for b in base):
                parameter.add_(torch.randn_like(parameter) * 0.3)


def inputs_for(name: str) -> dict[str, torch.Tensor]:
    if name == "vit":
        return {"pixel_values": torch.randn(2, 3, 8, 8)}
    words = torch.randint(3, VOCABULARY, (2, LENGTH))
    mask = torch.ones(2, LENGTH, dtype=torch.long)
    mask[1, LENGTH - 2 :] = 0
    words[mask == 0] = 1 if name in ("roberta", "xlm_roberta", "bart") else 0
    inputs = {"input_ids": words, "attention_mask": mask}
    if name.startswith(("t5", "bart")):
        inputs["decoder_input_ids"] = torch.randint(3, VOCABULARY, (2, 5))
    return inputs


def build(name: str) -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """The model, with weights that have an effect, and its inputs."""
    torch.manual_seed(0)
    class_name, options = MODELS[name]
    kind = getattr(transformers, class_name)
    model = kind(kind.config_class(**options)).eval()
    perturb(model, std=0.1)
    return model, inputs_for(name)


def output(model: nn.Module, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    with torch.no_grad():
        return model(**inputs).last_hidden_state.clone()


def one_adapter(
    name: str, base: Path, kind: str, config: object, inputs: dict[str, torch.Tensor]
) -> torch.Tensor:
    """Write one adapter, and return the output of the model with it."""
    torch.manual_seed(1)
    # Names in the files start with that of the base or not, and a bare base loses Compacter's rule.
    bare = getattr(transformers, MODELS[name][0])
    # DeBERTa's fused projection, which has no bias, gets a random one from adapters.init.
    is_bare = kind in BARE and name != "deberta"
    kind_of_model = bare if is_bare else adapters.AutoAdapterModel
    # Under SDPA, the library hides prefixes and prompts on some families, see ``Family.eager``.
    model = kind_of_model.from_pretrained(base, attn_implementation=ATTENTION).eval()
    if is_bare:
        adapters.init(model)
    before = {n for n, _ in model.named_parameters()}
    model.add_adapter("it", config=config)
    perturb_adapter(model, before)
    model.set_active_adapters("it")
    # The library cannot write prefixes as safetensors: its layers share their tensors.
    safe = not kind.startswith(("prefix", "unipelt", "mam")) and (name, kind) != ("bert", "lora")
    model.save_adapter(str(base.parent / kind), "it", use_safetensors=safe)
    found = output(model.eval(), inputs)
    # T5AdapterModel scales the output for its heads.
    return found * model.config.d_model**0.5 if name.startswith("t5") and not is_bare else found


LABELS = {0: "bad", 1: "good", 2: "fine"}
ONE_LAYER = {"layers": 1, "activation_function": None}
HEADS: dict[str, tuple[str, str, dict]] = {  # folder: model, kind of head, options
    "bert_head": ("bert", "classification", {**ONE_LAYER, "use_pooler": True}),
    "bert_two_layers": ("bert", "classification", {}),
    "bert_tagging": ("bert", "tagging", ONE_LAYER),
    "bert_answers": ("bert", "qa", ONE_LAYER),
    "roberta_head": ("roberta", "classification", {}),
    "deberta_v2_head": (
        "deberta_v2",
        "classification",
        {"layers": 2, "activation_function": "gelu", "use_pooler": False},
    ),
    "vit_head": ("vit", "image_classification", ONE_LAYER),
}


def heads() -> None:
    """Adapters with heads of the flex-head format."""
    for folder, (name, kind, options) in HEADS.items():
        torch.manual_seed(2)
        model = adapters.AutoAdapterModel.from_pretrained(Path(name, "base"))
        before = {n for n, _ in model.named_parameters()}
        model.add_adapter("it", config=adapters.SeqBnConfig(reduction_factor=4))
        labels = {} if kind == "qa" else {"num_labels": 3, "id2label": LABELS}
        getattr(model, f"add_{kind}_head")("it", **labels, **options)
        perturb_adapter(model, before)
        model.set_active_adapters("it")
        model.active_head = "it"
        model.save_adapter(folder, "it", with_head=True, use_safetensors=name != "roberta")
        save_logits(folder, model, name)


def static_head() -> None:
    """An adapter with the head that a class of transformers brings."""
    torch.manual_seed(2)
    model = transformers.BertForSequenceClassification.from_pretrained(
        "bert/base", num_labels=3, id2label=LABELS, label2id={v: k for k, v in LABELS.items()}
    )
    before = {n for n, _ in model.named_parameters()} - {"classifier.weight", "classifier.bias"}
    adapters.init(model)
    model.add_adapter("it", config=adapters.SeqBnConfig(reduction_factor=4))
    perturb_adapter(model, before)
    model.set_active_adapters("it")
    model.save_adapter("bert_static", "it", with_head=True, use_safetensors=True)
    save_logits("bert_static", model, "bert")


def save_logits(folder: str, model: nn.Module, name: str) -> None:
    _, inputs = build(name)
    with torch.no_grad():
        found = model.eval()(**inputs)
    logits = found.logits if hasattr(found, "logits") else found.start_logits
    save_file({"logits": logits.clone()}, Path(folder, "expected.safetensors"))


def main() -> None:
    if HERE.exists():
        shutil.rmtree(HERE)
    HERE.mkdir()
    os.chdir(HERE)  # the library writes the paths of the models into its files
    for name in MODELS:
        model, inputs = build(name)
        base = Path(name, "base")
        model.save_pretrained(base)
        expected = {**inputs, "base": output(model, inputs)}
        for kind, config in {**kinds(), **MORE.get(name, dict)()}.items():
            if kind not in ONLY.get(name, (kind,)) or kind in EXCEPT.get(name, ()):
                continue
            try:
                expected[kind] = one_adapter(name, base, kind, config, inputs)
            except Exception as error:  # kinds that the library does not have for a model
                shutil.rmtree(base.parent / kind, ignore_errors=True)
                print(f"{name} {kind}: {type(error).__name__}: {str(error)[:120]}")
        save_file(expected, Path(name, "expected.safetensors"))
    heads()
    static_head()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
