"""Writes the results of a run: folders and model cards."""
