"""Files of environments: configurations, datasets and adapter files. No database."""
