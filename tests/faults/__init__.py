"""Hundreds of fault plans on a real API server, each with the same end as no fault at all."""
