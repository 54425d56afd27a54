"""Events on their way to other servers: an outbox in the database, emptied by the workers, never by a run."""
