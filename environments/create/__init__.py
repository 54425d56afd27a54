"""New environments: their names, and the configuration that they begin with."""
