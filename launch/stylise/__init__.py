"""Stylise a user's pictures with a trained model."""
