"""The loss on held-out images: measured, remembered, and what follows from it."""
