"""What a network learns: one file a task; ``registry`` finds them by name."""
