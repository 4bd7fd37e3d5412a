"""Errors, files, locks, signals, names, progress bars, the machine: what every wing uses."""
