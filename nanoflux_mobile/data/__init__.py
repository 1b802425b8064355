"""Captioned pictures to learn from."""
