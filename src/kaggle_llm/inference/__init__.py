"""Engines that turn prompts into log-probabilities, texts and vectors; the time budget."""
