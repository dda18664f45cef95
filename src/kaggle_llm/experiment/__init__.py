"""What train.py touches: the run in the making, its parts, its score, and what ships."""
