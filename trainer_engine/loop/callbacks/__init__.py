"""Everything that happens in a run beside its steps, one file for each."""
