"""Figures of gates, and tables and figures of plans."""
