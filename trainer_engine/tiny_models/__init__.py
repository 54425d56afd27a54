"""Pieces of small models in the real Hugging Face layout, for tests and for the demo; every family's ``tiny.py`` puts its own together."""
