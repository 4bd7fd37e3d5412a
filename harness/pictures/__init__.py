"""Figures that need weights: correlation maps, crops."""
