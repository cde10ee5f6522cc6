"""A run on many Ray actors: their placement, the scheduling of their work, and recovery when one is lost."""
