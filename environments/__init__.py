"""What to train: environments, kept as rows and as files that a person can edit."""
