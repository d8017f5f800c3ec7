"""Every field of every kind, with every kind of wrong value: refused by name, or told by name."""
