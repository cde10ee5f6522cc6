"""An SFT run, in one process or in several."""
