"""Posts events to other servers, from an outbox in the database that the workers empty. Runs never wait for it."""
