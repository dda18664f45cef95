"""Fine-tuning: groups of candidates, LoRA, the trainer."""
