"""The configuration file of LyCORIS: its algorithms, its patterns, and the tensors of the adapter that it describes."""
