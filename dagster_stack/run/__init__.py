"""A run is driven, in a runner's process: which steps are ready, how they get to a queue, and how they ended."""
