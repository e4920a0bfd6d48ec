"""Runs as RayJobs on Kubernetes."""
