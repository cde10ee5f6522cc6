"""A run on disk: its folder, its reports, how it is resumed, and the model behind it."""
