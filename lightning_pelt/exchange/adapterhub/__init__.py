"""Adapters of AdapterHub's ``adapters`` library, on today's transformers."""

from lightning_pelt.exchange.adapterhub.hub_prompt import HubPrompt
from lightning_pelt.exchange.adapterhub.load import load_adapterhub

__all__ = ["HubPrompt", "load_adapterhub"]
