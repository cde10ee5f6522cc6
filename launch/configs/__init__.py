"""The settings of runs, every field a flag, and how they are kept."""
