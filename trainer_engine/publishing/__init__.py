"""Uploads beside training, each in a process of its own, and checkpoints fetched from where they were uploaded to. No torch here."""
