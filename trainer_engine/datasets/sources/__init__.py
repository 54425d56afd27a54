"""Sources of dataset files: one module for each kind of storage."""
