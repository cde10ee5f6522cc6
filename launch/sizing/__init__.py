"""How much a run computes and holds, counted in its own code on the meta device."""
