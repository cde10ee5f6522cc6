"""Writing and sharing a trained model."""
