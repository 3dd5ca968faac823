"""Tasks, one file each: the head, the loss, the metrics and the predictions of a model.

A task depends neither on the plan that is attached to the model nor on the trainer.
"""

from lightning_pelt.tasks.audio_classification import AudioClassification
from lightning_pelt.tasks.base import Task
from lightning_pelt.tasks.causal_lm import CausalLM
from lightning_pelt.tasks.classification import Classification
from lightning_pelt.tasks.image_classification import ImageClassification
from lightning_pelt.tasks.regression import Regression
from lightning_pelt.tasks.speech_recognition import SpeechRecognition
from lightning_pelt.tasks.text_to_text import TextToText

__all__ = [
    "AudioClassification",
    "CausalLM",
    "Classification",
    "ImageClassification",
    "Regression",
    "SpeechRecognition",
    "Task",
    "TextToText",
]
