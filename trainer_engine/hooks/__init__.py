"""Hooks: programs that a run starts at checkpoints, uploads and validations, each under a supervisor process."""
