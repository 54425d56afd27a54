"""Generates validation images, announces and saves them."""
