"""Learning from targets: supervised fine-tuning, and the training of the VQ-VAE."""
