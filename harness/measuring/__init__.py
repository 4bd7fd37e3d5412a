"""Quality, operations, time, memory, approximation, redraws."""
