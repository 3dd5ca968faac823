"""Data modules: read rows, tokenize them, and batch rows of similar length."""

from lightning_pelt.data.answered_questions import AnsweredQuestions
from lightning_pelt.data.audio import LabelledAudio
from lightning_pelt.data.base import RowsDataModule
from lightning_pelt.data.causal_text import CausalText
from lightning_pelt.data.chat_text import ChatText
from lightning_pelt.data.glue import GLUE
from lightning_pelt.data.images import LabelledImages
from lightning_pelt.data.masked_text import MaskedText
from lightning_pelt.data.multi_label_text import MultiLabelText
from lightning_pelt.data.packing import CollatePacked, fill_rate, pack
from lightning_pelt.data.profile_data import ProfileDataModule
from lightning_pelt.data.sentence_pairs import SentencePairs
from lightning_pelt.data.simulated_readers import SimulatedReaders
from lightning_pelt.data.stdlib_docs import StdlibDocs
from lightning_pelt.data.tagged_words import TaggedWords
from lightning_pelt.data.text import TextClassification
from lightning_pelt.data.text_base import TextDataModule
from lightning_pelt.data.text_choices import TextChoices
from lightning_pelt.data.text_to_text import TextToText
from lightning_pelt.data.transcribed_audio import TranscribedAudio

__all__ = [
    "GLUE",
    "AnsweredQuestions",
    "CausalText",
    "ChatText",
    "CollatePacked",
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
    "TextToText",
    "TranscribedAudio",
    "fill_rate",
    "pack",
]
