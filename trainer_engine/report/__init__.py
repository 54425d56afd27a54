"""Draws a report of a run from its journal, in a process of its own: a grid of its validation images, and its curves.

It needs pydantic and Pillow, and matplotlib for the curves; it never imports torch.
"""
