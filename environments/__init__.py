"""What to train: environments, stored as database rows and as files that people can edit."""
