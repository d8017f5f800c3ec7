"""What the operator costs and how fast it answers, on a real API server."""
