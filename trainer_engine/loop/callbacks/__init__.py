"""What happens besides training, one file each."""
