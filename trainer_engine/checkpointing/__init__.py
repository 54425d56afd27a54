"""Saving checkpoints, and removing the ones that are not kept."""
