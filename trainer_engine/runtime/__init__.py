"""The process of a run: its devices, ranks, environment, journal, signals and memory."""
