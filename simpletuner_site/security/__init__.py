"""Who may talk to the server, and what pages may load."""
