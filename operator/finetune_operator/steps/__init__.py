"""The steps of a pipeline: each says what it runs; `attempts` walks any of them to its end."""
