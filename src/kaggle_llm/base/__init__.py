"""Paths, records, config, hashes, errors, processes: what every room needs. Standard library where possible."""
