"""What outlives a job on the host: the cache, the folders of running jobs, and locks."""
