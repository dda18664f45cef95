"""The trainer: one loop for every task, adapters, checkpoints, launch configs, tracking."""
