"""What makes a checkout or a machine ready: engine, packages, virtual environment.

Standard library only: ``bootstrap`` runs before anything is installed.
"""
