"""How long a test waits for what has to happen."""

HANG = 1800.0
"""Seconds after which a wait counts as a hang: more than the busiest machine takes, since no test is about speed."""
