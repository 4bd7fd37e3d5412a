"""The tables, from the records alone."""
