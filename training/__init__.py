"""A run and its life: queue, engine process, event log, streams."""
