"""Benchmarks: ``make bench`` prints the table of docs/benchmarks.md. They assert nothing about time."""
