"""The configuration file of LyCORIS: its algorithms, its patterns and the tensors that an adapter of it has."""
