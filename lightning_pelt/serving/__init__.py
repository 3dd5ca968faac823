"""Answers for many profiles from one backbone."""

from lightning_pelt.serving.server import ProfileServer

__all__ = ["ProfileServer"]
