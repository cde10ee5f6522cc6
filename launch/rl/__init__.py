"""A GRPO run: the loop, and the worker that does its steps in one process."""
