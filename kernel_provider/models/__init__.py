"""The model registry: models kept on this machine, checked, and shown to sandboxes.

A model is added once, by copying from somewhere on this machine; nothing here reaches
a network. Launches read the registry and never change it.
"""
