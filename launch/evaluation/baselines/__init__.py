"""Classical methods behind the interface of the model's sampler, to hold its table against."""
