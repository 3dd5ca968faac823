"""Profiles: a few hundred bytes of choice over a frozen bank of adapters."""

from lightning_pelt.profiles.model_profiles import read_profile, write_profile
from lightning_pelt.profiles.profile import Profile

__all__ = ["Profile", "read_profile", "write_profile"]
