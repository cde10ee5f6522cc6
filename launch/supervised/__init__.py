"""An SFT run, in one process or several."""
