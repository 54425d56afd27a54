"""The process a run lives in: devices, ranks, journal, signals and memory."""
