"""What train.py uses: the experiment, its parts, its score, and what ships."""
