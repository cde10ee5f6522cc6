"""The parts of launch/eval.py: methods, conditions, metrics, statistics and tables."""
