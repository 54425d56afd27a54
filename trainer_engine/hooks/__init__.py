"""Programs that a run starts: each under a warden of its own, told of in events."""
