"""Rules that options must satisfy together: one file for each option group, with its ``RULES``."""
