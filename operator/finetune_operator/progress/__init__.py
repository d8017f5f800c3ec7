"""Live progress: reports of running trainers, from their pods into the status of their jobs."""
