"""From one description of a run to a Ray job, an sbatch script and a RayJob manifest. Pure; loads without torch."""
