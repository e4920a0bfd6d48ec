"""Launches runs as Slurm jobs."""
