"""Trackers that metrics and images are sent to: beside the run, never in its way."""
