"""The operator on this computer: objects are files, steps are processes, no cluster."""
