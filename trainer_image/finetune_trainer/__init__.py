"""The trainer: one program, one job file, one termination message."""
