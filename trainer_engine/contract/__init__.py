"""The one page that the web and the engine both read: run folder, events, commands, errors, families, options."""
