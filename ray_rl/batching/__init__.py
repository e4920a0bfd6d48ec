"""From rollouts to arrays, and from arrays to the micro-batches of each worker."""
