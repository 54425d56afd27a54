"""The life of a job in the database, from the queue to its end."""
