"""Credit assignment: how the rewards of a step become advantages of its tokens, one file per method."""
