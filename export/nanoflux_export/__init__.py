"""From a checkpoint to a phone bundle: rewrite, convert, compress, verify, pack."""
