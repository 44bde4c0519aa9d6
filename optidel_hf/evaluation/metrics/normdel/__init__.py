"""NormDEL, the data-effectiveness score of MedDEL."""
