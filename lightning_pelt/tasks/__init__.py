"""Tasks, one file each: the head, the loss, the metrics and the predictions of a model.

A task depends neither on the plan that is attached to the model nor on the trainer.
"""

from lightning_pelt.tasks.base import Task
from lightning_pelt.tasks.causal_lm import CausalLM
from lightning_pelt.tasks.classification import Classification
from lightning_pelt.tasks.regression import Regression
from lightning_pelt.tasks.text_to_text import TextToText

__all__ = ["CausalLM", "Classification", "Regression", "Task", "TextToText"]
