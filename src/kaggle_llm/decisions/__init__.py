"""Decisions fitted on out-of-fold predictions: a temperature, thresholds, the weights of an ensemble."""
