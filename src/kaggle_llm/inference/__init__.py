"""What predict.py touches: the run and its models, kept answers, decisions, ensembles, the time budget."""
