"""Tasks, one file each: the head, the loss, the metrics and the predictions of a model.

A task depends neither on the plan that is attached to the model nor on the trainer.
"""

from lightning_pelt.tasks.audio_classification import AudioClassification
from lightning_pelt.tasks.base import Task
from lightning_pelt.tasks.causal_lm import CausalLM
from lightning_pelt.tasks.classification import Classification
from lightning_pelt.tasks.contrastive import Contrastive
from lightning_pelt.tasks.image_classification import ImageClassification
from lightning_pelt.tasks.masked_lm import MaskedLM
from lightning_pelt.tasks.multi_label import MultiLabel
from lightning_pelt.tasks.multiple_choice import MultipleChoice
from lightning_pelt.tasks.question_answering import QuestionAnswering
from lightning_pelt.tasks.regression import Regression
from lightning_pelt.tasks.sentence_similarity import SentenceSimilarity
from lightning_pelt.tasks.speech_recognition import SpeechRecognition
from lightning_pelt.tasks.text_to_text import TextToText
from lightning_pelt.tasks.token_classification import TokenClassification

__all__ = [
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
    "TextToText",
    "TokenClassification",
]
