"""Adapters in the shapes that other programs load: ``python -m trainer_engine.exporting ADAPTER --to diffusers --output FILE``."""
