"""Before a run is driven, in the daemon: it waits for a place, becomes a message, and is watched while it has no runner."""
