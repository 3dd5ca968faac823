"""Adapters of AdapterHub's ``adapters`` library, on today's transformers."""

from lightning_pelt.exchange.adapterhub.hub_prefix import HubPrefix
from lightning_pelt.exchange.adapterhub.hub_prompt import HubPrompt
from lightning_pelt.exchange.adapterhub.load import load_adapterhub

__all__ = ["HubPrefix", "HubPrompt", "load_adapterhub"]
