"""The contract between server and engine: run folder, events, commands, errors, checkpoints, hooks and path rules."""
