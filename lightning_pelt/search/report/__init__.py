"""Report of a search: a page with figures, progress, Weights & Biases, and recipes."""
