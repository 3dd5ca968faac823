"""Profiles: a few hundred bytes of choice over a frozen bank of adapters."""
