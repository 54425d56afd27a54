"""Secrets of configurations: hidden in answers, stored below ``state/secrets``."""
