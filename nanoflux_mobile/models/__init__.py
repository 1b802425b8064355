"""The networks, one file per family, and their parts."""
