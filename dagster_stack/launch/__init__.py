"""Before a run is driven, in the daemon: it waits for a place, becomes a message, and is looked after while nobody has it."""
