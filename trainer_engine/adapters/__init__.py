"""What of a network learns: all of it, or an adapter on frozen weights."""
