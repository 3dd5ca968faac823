"""What a model is trained for: one file per kind of task.

A task owns the head, the loss, the metrics and the shape of a prediction. It knows neither the plan
that is attached to the model nor the trainer that runs it.
"""

from lightning_pelt.tasks.base import Task
from lightning_pelt.tasks.causal_lm import CausalLM
from lightning_pelt.tasks.classification import Classification
from lightning_pelt.tasks.regression import Regression
from lightning_pelt.tasks.text_to_text import TextToText

__all__ = ["CausalLM", "Classification", "Regression", "Task", "TextToText"]
