"""Finds, downloads, loads and quantizes the weights of a base model."""
