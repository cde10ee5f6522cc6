"""What every program shares: flags, output, signals, devices, the checkout and its Ray cluster."""
