"""What predict.py uses: the run and its models, cached answers, decisions, ensembles, the time budget."""
