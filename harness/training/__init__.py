"""The trainer, checkpoints, several processes, diagnosis."""
