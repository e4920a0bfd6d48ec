"""Turns one description of a run into a Ray job, an sbatch script or a RayJob manifest. Loads without torch."""
