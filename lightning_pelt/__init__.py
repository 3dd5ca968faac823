"""Gated parameter-efficient tuning of Hugging Face transformers for PyTorch Lightning."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from lightning_pelt.attach import (
    Adapters,
    Attachment,
    attach,
    detach,
    load_adapters,
    merge,
    quantise,
    save_adapters,
)
from lightning_pelt.exchange.adapterhub import HubPrefix, HubPrompt, load_adapterhub
from lightning_pelt.exchange.distillation import distil_lora
from lightning_pelt.exchange.hub import from_hub, push_to_hub
from lightning_pelt.exchange.loading import load_pelt
from lightning_pelt.exchange.peft import load_peft, save_peft
from lightning_pelt.exchange.predictor import Predictor
from lightning_pelt.methods import (
    IA3,
    XPEFT,
    Adapter,
    BitFit,
    Compacter,
    LoRA,
    LowRankAdapter,
    MiSS,
    NewTokens,
    Prefix,
    Prompt,
)
from lightning_pelt.methods.gate import Gate
from lightning_pelt.methods.xpeft import RandomBank, TrainedBank, load_bank, profiles_of, save_bank
from lightning_pelt.plans import FullFineTuning, Group, HeadOnly, Plan, UniPELT
from lightning_pelt.plans.design_space import S4, Design, S4_3b
from lightning_pelt.utils.backbone import resolve_backbone

if TYPE_CHECKING:
    from lightning_pelt.callbacks import (
        FiniteGuard,
        GateMonitor,
        GateSchedule,
        MaskTemperature,
        ParameterCount,
        PELTCallback,
        SampleTable,
        WritePredictions,
    )
    from lightning_pelt.data import (
        GLUE,
        AnsweredQuestions,
        CausalText,
        ChatText,
        LabelledAudio,
        LabelledImages,
        MaskedText,
        MultiLabelText,
        ProfileDataModule,
        RowsDataModule,
        SentencePairs,
        SimulatedReaders,
        StdlibDocs,
        TaggedWords,
        TextChoices,
        TextClassification,
        TextDataModule,
        TranscribedAudio,
    )
    from lightning_pelt.profiles import Profile, read_profile, write_profile
    from lightning_pelt.profiles.serving import ProfileServer
    from lightning_pelt.profiles.store import ProfileStore
    from lightning_pelt.tasks import (
        AudioClassification,
        CausalLM,
        Classification,
        Contrastive,
        ImageClassification,
        MaskedLM,
        MultiLabel,
        MultipleChoice,
        QuestionAnswering,
        Regression,
        SentenceSimilarity,
        SpeechRecognition,
        Task,
        TokenClassification,
    )
    from lightning_pelt.training import PELTModule, Phase, named_groups

# Names that need Lightning or an extra: a plain ``attach`` does not wait for those imports.
_LAZY = {
    "callbacks": (
        "FiniteGuard",
        "GateMonitor",
        "GateSchedule",
        "MaskTemperature",
        "PELTCallback",
        "ParameterCount",
        "SampleTable",
        "WritePredictions",
    ),
    "data": (
        "AnsweredQuestions",
        "CausalText",
        "ChatText",
        "GLUE",
        "LabelledAudio",
        "LabelledImages",
        "MaskedText",
        "MultiLabelText",
        "ProfileDataModule",
        "RowsDataModule",
        "SentencePairs",
        "SimulatedReaders",
        "StdlibDocs",
        "TaggedWords",
        "TextChoices",
        "TextClassification",
        "TextDataModule",
        "TranscribedAudio",
    ),
    "profiles": ("Profile", "read_profile", "write_profile"),
    "profiles.serving": ("ProfileServer",),
    "profiles.store": ("ProfileStore",),
    "tasks": (
        "AudioClassification",
        "CausalLM",
        "Classification",
        "Contrastive",
        "ImageClassification",
        "MaskedLM",
        "MultiLabel",
        "MultipleChoice",
        "QuestionAnswering",
        "Regression",
        "SentenceSimilarity",
        "SpeechRecognition",
        "Task",
        "TokenClassification",
    ),
    "training": ("PELTModule", "Phase", "named_groups"),
}
_HOMES = {name: home for home, names in _LAZY.items() for name in names}

__all__ = [
    "GLUE",
    "IA3",
    "S4",
    "XPEFT",
    "Adapter",
    "Adapters",
    "AnsweredQuestions",
    "Attachment",
    "AudioClassification",
    "BitFit",
    "CausalLM",
    "CausalText",
    "ChatText",
    "Classification",
    "Compacter",
    "Contrastive",
    "Design",
    "FiniteGuard",
    "FullFineTuning",
    "Gate",
    "GateMonitor",
    "GateSchedule",
    "Group",
    "HeadOnly",
    "HubPrefix",
    "HubPrompt",
    "ImageClassification",
    "LabelledAudio",
    "LabelledImages",
    "LoRA",
    "LowRankAdapter",
    "MaskTemperature",
    "MaskedLM",
    "MaskedText",
    "MiSS",
    "MultiLabel",
    "MultiLabelText",
    "MultipleChoice",
    "NewTokens",
    "PELTCallback",
    "PELTModule",
    "ParameterCount",
    "Phase",
    "Plan",
    "Predictor",
    "Prefix",
    "Profile",
    "ProfileDataModule",
    "ProfileServer",
    "ProfileStore",
    "Prompt",
    "QuestionAnswering",
    "RandomBank",
    "Regression",
    "RowsDataModule",
    "S4_3b",
    "SampleTable",
    "SentencePairs",
    "SentenceSimilarity",
    "SimulatedReaders",
    "SpeechRecognition",
    "StdlibDocs",
    "TaggedWords",
    "Task",
    "TextChoices",
    "TextClassification",
    "TextDataModule",
    "TokenClassification",
    "TrainedBank",
    "TranscribedAudio",
    "UniPELT",
    "WritePredictions",
    "attach",
    "detach",
    "distil_lora",
    "from_hub",
    "load_adapterhub",
    "load_adapters",
    "load_bank",
    "load_peft",
    "load_pelt",
    "merge",
    "named_groups",
    "profiles_of",
    "push_to_hub",
    "quantise",
    "read_profile",
    "resolve_backbone",
    "save_adapters",
    "save_bank",
    "save_peft",
    "write_profile",
]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Import the home of a lazy name when it is first asked for."""
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
