"""Root of the latency reports and their gate; this release ships neither."""
