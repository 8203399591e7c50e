"""One module for each command of ``executor-ml``."""
