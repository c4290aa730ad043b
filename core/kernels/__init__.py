"""The equations made fast: backends that run a whole sequence, chosen by one dispatcher."""
