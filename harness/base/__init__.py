"""Errors, files, locks, signals, the machine: what every wing stands on."""
