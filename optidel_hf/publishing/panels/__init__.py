"""The report's panels: what each shows, read from a run's files or handed over by who knows the other wings."""
