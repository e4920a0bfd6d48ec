"""Launches runs as RayJobs on Kubernetes."""
