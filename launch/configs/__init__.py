"""The settings of runs: every field is a flag, and a run's folder keeps them as YAML."""
