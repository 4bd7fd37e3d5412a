"""The figures, from the records alone."""
