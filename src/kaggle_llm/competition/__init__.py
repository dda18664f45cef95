"""Competitions: their tables, answers, metrics, folds and leaks; one module for each competition."""
