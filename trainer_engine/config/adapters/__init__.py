"""Adapter files read by their headers, without torch."""
