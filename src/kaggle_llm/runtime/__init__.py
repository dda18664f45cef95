"""Pinned Kaggle images and their machines; checks of models and machines against them."""
