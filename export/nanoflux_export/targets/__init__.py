"""One folder per phone runtime; none knows another."""
