"""Classical methods with the interface of the model's sampler, for comparison."""
