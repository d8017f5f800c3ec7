"""Decides what a job needs next, and has it done: on a cluster, or on this computer."""
