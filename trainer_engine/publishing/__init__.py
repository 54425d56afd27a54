"""Uploads checkpoints and results during training, and downloads checkpoints. Each transfer is a process of its own, without torch."""
