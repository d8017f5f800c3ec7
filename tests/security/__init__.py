"""What tenants, and whoever reaches a port, may not do."""
