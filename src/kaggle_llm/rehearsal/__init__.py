"""A stand-in for Kaggle that runs the real notebook offline."""
