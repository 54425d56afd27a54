"""What options must satisfy together, one file for each group."""
