"""``executor-ml verify``: tries to break each promise from inside, and looks from outside."""
