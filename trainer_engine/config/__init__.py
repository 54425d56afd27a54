"""What can be configured: options, datasets, adapter files and families, parsed and checked without torch."""
