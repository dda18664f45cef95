"""One kind of work each: its prompts and how answers are read; its examples and loss (*_training.py)."""
