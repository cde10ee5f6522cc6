"""Shared by all programs: flags, output, signals, devices, the checkout and its Ray cluster."""
