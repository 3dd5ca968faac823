"""Predictions for many profiles with one backbone."""

from lightning_pelt.profiles.serving.server import ProfileServer

__all__ = ["ProfileServer"]
