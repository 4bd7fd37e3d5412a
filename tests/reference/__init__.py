"""Slow, obvious oracles: literal loops in float64, written from the papers and read by eye."""
