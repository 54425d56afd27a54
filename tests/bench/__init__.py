"""Benchmarks: ``make bench`` prints the table that the README quotes. They assert nothing about time."""
