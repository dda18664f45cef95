"""Mechanisms shared by all experiments of a Kaggle competition that is won with language models."""
