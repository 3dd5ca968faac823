"""The model families on which adapters of AdapterHub were compared with ours."""

from __future__ import annotations

from lightning_pelt.exchange.adapterhub.family import LETTERS, QKV, Family
from lightning_pelt.utils.errors import unknown

IN_BLOCK = {
    "attention_adapters": "attention",
    "cross_attention_adapters": "cross_attention",
    "output_adapters": "ffn",
}
PREFIX, PROMPT = "prefix_length", "prompt_length"
ENCODER = r"encoder\.layer\.(?P<number>\d+)"
OWN = {"self_prefix": (None, "attention")}
SEQ2SEQ = {
    "encoder_prefix": ("encoder", "attention"),
    "self_prefix": ("decoder", "attention"),
    "cross_prefix": ("decoder", "cross_attention"),
}
FEED_FORWARD = {"intermediate.dense": "ffn.in", "output.dense": "ffn.out"}


def _attention(path: str, role: str, suffix: str = "") -> dict[str, str]:
    """Names of the three projections of an attention, such as ``q``, and the prefix at ``path``."""
    names = {"": ("query", "key", "value"), "_proj": ("query_proj", "key_proj", "value_proj")}
    short = {
        "t5": ("q", "k", "v"),
        "bart": ("q_proj", "k_proj", "v_proj"),
        "distilbert": ("q_lin", "k_lin", "v_lin"),
    }
    trio = (names | short)[suffix]
    roles = zip(trio, LETTERS.values(), strict=True)
    return {f"{path}.{name}": f"{role}.{part}" for name, part in roles} | {
        f"{path}.prefix_tuning": role
    }


def _classifier(pooled: bool | None, *, layers: int = 1, activation: str | None = None) -> dict:
    settings = {"head_type": "classification", "layers": layers, "activation_function": activation}
    return settings if pooled is None else {**settings, "use_pooler": pooled}


TAGGING = {"head_type": "tagging", "layers": 1, "activation_function": None}
ANSWERS = {"head_type": "question_answering", "layers": 1, "activation_function": None}

_BERT = {"attention.output": "attention", "output": "ffn", **FEED_FORWARD}
_TOKENS = {
    "TokenClassification": (TAGGING, (None, "classifier")),
    "QuestionAnswering": (ANSWERS, (None, "qa_outputs")),
}

_ROBERTA_HEADS = {
    "SequenceClassification": (
        _classifier(False, layers=2, activation="tanh"),
        (None, "classifier.dense", None, None, "classifier.out_proj"),
    ),
    **_TOKENS,
}

FAMILIES = {
    "bert": Family(
        ENCODER,
        {**_BERT, **_attention("attention.self", "attention")},
        OWN,
        {
            "SequenceClassification": (_classifier(True), (None, "classifier")),
            **_TOKENS,
        },
        eager=(PROMPT,),
    ),
    "roberta": Family(
        ENCODER,
        {**_BERT, **_attention("attention.self", "attention")},
        OWN,
        _ROBERTA_HEADS,
        eager=(PROMPT,),
    ),
    "xlm-roberta": Family(
        ENCODER,
        {**_BERT, **_attention("attention.self", "attention")},
        OWN,
        _ROBERTA_HEADS,
        eager=(PROMPT,),
    ),
    "deberta": Family(
        ENCODER,
        {**_BERT, "attention.self.in_proj": QKV, "attention.self.prefix_tuning": "attention"},
        OWN,
        prompts=False,
    ),
    "deberta-v2": Family(
        ENCODER,
        {**_BERT, **_attention("attention.self", "attention", "_proj")},
        OWN,
        {
            "SequenceClassification": (
                _classifier(False, layers=2, activation="gelu"),
                (None, "pooler.dense", None, None, "classifier"),
            ),
        },
        prompts=False,
    ),
    "vit": Family(
        ENCODER,
        {
            "attention_adapters": "attention",
            "output.output_adapters": "ffn",
            **FEED_FORWARD,
            **_attention("attention.attention", "attention"),
        },
        OWN,
        {
            "ImageClassification": (
                {**TAGGING, "head_type": "image_classification"},
                (None, "classifier"),
            ),
        },
    ),
    "distilbert": Family(
        r"transformer\.layer\.(?P<number>\d+)",
        {
            **IN_BLOCK,
            **_attention("attention", "attention", "distilbert"),
            "ffn.lin1": "ffn.in",
            "ffn.lin2": "ffn.out",
        },
        {"self": (None, "attention")},
        eager=(PREFIX,),
        prompts=False,
    ),
    "llama": Family(
        r"layers\.(?P<number>\d+)",
        {
            **IN_BLOCK,
            **_attention("self_attn", "attention", "bart"),
            "mlp.up_proj": "ffn.in_2",
            "mlp.down_proj": "ffn.out",
        },
        OWN,
        eager=(PREFIX,),
        intermediate="ffn.out",
        output="ffn.in_2",
    ),
    "gpt2": Family(
        r"h\.(?P<number>\d+)",
        {
            **IN_BLOCK,
            "attn.c_attn": QKV,
            "attn.prefix_tuning": "attention",
            "mlp.c_fc": "ffn.in",
            "mlp.c_proj": "ffn.out",
        },
        OWN,
        eager=(PREFIX,),
    ),
    "t5": Family(
        r"(?P<stack>encoder|decoder)\.block\.(?P<number>\d+)",
        {
            "layer.0": "attention",
            "encoder:layer.1": "ffn",
            "decoder:layer.1": "cross_attention",
            "decoder:layer.2": "ffn",
            **_attention("layer.0.SelfAttention", "attention", "t5"),
            **_attention("layer.1.EncDecAttention", "cross_attention", "t5"),
            **{
                f"layer.{number}.DenseReluDense.{name}": role
                for number in (1, 2)
                for name, role in (("wi", "ffn.in"), ("wi_1", "ffn.in_2"), ("wo", "ffn.out"))
            },
        },
        SEQ2SEQ,
        shifts=True,
    ),
    "bart": Family(
        r"(?P<stack>encoder|decoder)\.layers\.(?P<number>\d+)",
        {
            **IN_BLOCK,
            **_attention("self_attn", "attention", "bart"),
            **_attention("encoder_attn", "cross_attention", "bart"),
            "fc1": "ffn.in",
            "fc2": "ffn.out",
        },
        SEQ2SEQ,
        eager=(PREFIX,),
    ),
}  # fmt: skip


def family_of(model_type: str) -> Family:
    """The family ``model_type``.

    Raises:
        ValueError: adapters of AdapterHub were not compared with ours on this family.
    """
    if model_type not in FAMILIES:
        raise unknown(
            "family of AdapterHub's adapters",
            model_type,
            FAMILIES,
            remedy=(
                f"outputs were compared on {', '.join(FAMILIES)}, and an adapter of another family "
                "is not loaded on trust. Train it again with attach(model, plan)"
            ),
        )
    return FAMILIES[model_type]
