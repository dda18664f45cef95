"""One kind of work each: what it asks the model and reads of its answers, and its examples and loss (*_training.py)."""
