"""What each MIL op computes; a public function of an op module is the op of that name."""
