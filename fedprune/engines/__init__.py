"""Who serves the partitions: this process, Ray, or devices."""
