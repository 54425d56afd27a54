"""Adapters in the shapes that other programs load: ``python -m trainer_engine.export ADAPTER --to diffusers --output FILE``."""
