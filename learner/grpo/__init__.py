"""Learning from rewards: group-relative policy optimisation, one formula per file."""
