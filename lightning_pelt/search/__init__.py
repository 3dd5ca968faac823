"""Searches of the design space: racing over random designs, on any number of machines."""
