"""Datasets without torch: discovery, sizes, captions and buckets. ``validate`` and training use the same code."""
