"""Objects and pods of a cluster: what is observed there, and what plans become there."""
