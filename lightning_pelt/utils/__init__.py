"""Errors, files, text and backbones: helpers for every other folder."""
