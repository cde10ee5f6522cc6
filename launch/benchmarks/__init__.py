"""What `launch/bench.py` measures, a file for each command."""
