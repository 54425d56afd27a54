"""Starts the engine as a process and reads its journal. Knows no database."""
