"""Attacks on a real server, sent as a hostile client of the machine would send them: ``python -m tests.security`` runs them all."""
