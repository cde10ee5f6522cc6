"""A run on disk: its folder, its reports, and how it is driven and resumed."""
