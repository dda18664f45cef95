"""Folds, what is fitted on held-out scores, and the comparison of two runs."""
