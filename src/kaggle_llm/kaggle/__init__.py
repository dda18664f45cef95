"""The bundle, its notebook, what the notebook runs, and the kaggle CLI."""
