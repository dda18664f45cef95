"""One module a competition: its reader, metric and submission format."""
