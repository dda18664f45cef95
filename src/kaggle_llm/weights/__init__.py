"""What happens between a trained adapter and the weights that ship."""
