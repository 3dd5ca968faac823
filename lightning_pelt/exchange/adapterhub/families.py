"""How AdapterHub names the modules of a model family that carry its adapters."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lightning_pelt.anatomy import Anatomy
from lightning_pelt.utils.errors import unknown

QKV = "attention.qkv"  # a projection of which AdapterHub extends thirds
LETTERS = {"q": "query", "k": "key", "v": "value"}  # of ``attn_matrices``


@dataclass(frozen=True)
class Family:
    """The names in the files of one family.

    Args:
        layers: a pattern with the groups ``number`` and, in an encoder-decoder, ``stack``.
        places: by paths in a block, the roles of sites here. In an encoder-decoder, a path may
            start with the stack and a colon.
        prefixes: by the names of groups of prefixes, their stack (None for the only one) and role.
        heads: see :mod:`lightning_pelt.exchange.adapterhub.heads`.
        eager: the settings of methods that the library masks rightly with
            ``attn_implementation="eager"`` alone. SDPA, its default, takes a mask of booleans, to
            which the library adds columns that hide the prefix or prompt.
        shifts: whether relative positions count the tokens of the prefix there.
        prompts: whether a prompt works there, and attends to words alone, not to padding.
        intermediate: the site that the library calls so; None for the projection into the
            feed-forward, of a gated one that without the activation.
        output: the site that the library calls so.
    """

    layers: str
    places: Mapping[str, str]
    prefixes: Mapping[str, tuple[str | None, str]]
    heads: Mapping[str, tuple[dict[str, Any], tuple[str | None, ...]]] = field(default_factory=dict)
    eager: tuple[str, ...] = ()
    shifts: bool = False
    prompts: bool = True
    intermediate: str | None = None
    output: str = "ffn.out"

    def locate(self, path: str, anatomy: Anatomy) -> tuple[str, int, str] | None:
        """Stack, number of the block, and role of the module at ``path``; None if unknown."""
        match = re.search(rf"(?:^|\.){self.layers}\.(?P<place>.+)$", path)
        if match is None:
            return None
        stack = match.groupdict().get("stack") or anatomy.stacks[0].name
        place = match["place"]
        role = self.places.get(f"{stack}:{place}", self.places.get(place))
        return None if role is None else (stack, int(match["number"]), role)

    def inner(self, anatomy: Anatomy) -> str:
        """The site that the library calls ``intermediate``."""
        gated = any(site.role == "ffn.in_2" for site in anatomy.sites)
        return self.intermediate or ("ffn.in_2" if gated else "ffn.in")

    @property
    def merged(self) -> bool:
        """Whether one projection computes queries, keys and values."""
        return QKV in self.places.values()


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
