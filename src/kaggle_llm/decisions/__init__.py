"""What is fitted behind a model, on out-of-fold rows: a temperature, thresholds, the weights of a blend."""
