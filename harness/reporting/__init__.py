"""Statistics, tables, figures and the report, from the records alone."""
