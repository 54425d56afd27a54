"""Sends the metrics and images of a run to experiment trackers."""
