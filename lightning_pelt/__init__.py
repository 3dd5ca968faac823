"""Gated parameter-efficient tuning of Hugging Face transformers for PyTorch Lightning."""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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
    from lightning_pelt.callbacks import (
        FiniteGuard,
        GateMonitor,
        GateSchedule,
        MaskTemperature,
        ParameterCount,
        PELTCallback,
        SampleTable,
        TrunkCache,
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
    from lightning_pelt.methods.xpeft import (
        RandomBank,
        TrainedBank,
        load_bank,
        profiles_of,
        save_bank,
    )
    from lightning_pelt.plans import FullFineTuning, Group, HeadOnly, Plan, UniPELT
    from lightning_pelt.plans.design_space import S4, Design, S4_3b
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
    from lightning_pelt.training import PELTModule, Phase, named_groups, split_base
    from lightning_pelt.utils.backbone import resolve_backbone

# Names are imported when they are first asked for: the command line answers ``--help`` without
# torch, and a plain ``attach`` does not wait for Lightning.
_NAMES: dict[str, tuple[str, ...]] = {
    "attach": (
        "Adapters",
        "Attachment",
        "attach",
        "detach",
        "load_adapters",
        "merge",
        "quantise",
        "save_adapters",
    ),
    "callbacks": (
        "FiniteGuard",
        "GateMonitor",
        "GateSchedule",
        "MaskTemperature",
        "PELTCallback",
        "ParameterCount",
        "SampleTable",
        "TrunkCache",
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
    "exchange.adapterhub": (
        "HubPrefix",
        "HubPrompt",
        "load_adapterhub",
    ),
    "exchange.distillation": ("distil_lora",),
    "exchange.hub": (
        "from_hub",
        "push_to_hub",
    ),
    "exchange.loading": ("load_pelt",),
    "exchange.peft": (
        "load_peft",
        "save_peft",
    ),
    "exchange.predictor": ("Predictor",),
    "methods": (
        "Adapter",
        "BitFit",
        "Compacter",
        "IA3",
        "LoRA",
        "LowRankAdapter",
        "MiSS",
        "NewTokens",
        "Prefix",
        "Prompt",
        "XPEFT",
    ),
    "methods.gate": ("Gate",),
    "methods.xpeft": (
        "RandomBank",
        "TrainedBank",
        "load_bank",
        "profiles_of",
        "save_bank",
    ),
    "plans": (
        "FullFineTuning",
        "Group",
        "HeadOnly",
        "Plan",
        "UniPELT",
    ),
    "plans.design_space": (
        "Design",
        "S4",
        "S4_3b",
    ),
    "profiles": (
        "Profile",
        "read_profile",
        "write_profile",
    ),
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
    "training": (
        "PELTModule",
        "Phase",
        "named_groups",
        "split_base",
    ),
    "utils.backbone": ("resolve_backbone",),
}
_HOMES = {name: home for home, names in _NAMES.items() for name in names}

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
    "TrunkCache",
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
    "split_base",
    "write_profile",
]
__version__ = "0.2.0"


def __getattr__(name: str) -> Any:
    """Import the home of a public name, or a folder of them, when it is first asked for."""
    if any(home.partition(".")[0] == name for home in _NAMES):
        return import_module(f"{__name__}.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Package(ModuleType):
    """The package, in which the name of a folder is that of a function too."""

    @property
    def attach(self) -> Any:
        return import_module(f"{__name__}.attach.attach").attach

    @attach.setter
    def attach(self, folder: ModuleType) -> None:
        """Python sets the attribute to the folder when it is imported."""


sys.modules[__name__].__class__ = _Package
