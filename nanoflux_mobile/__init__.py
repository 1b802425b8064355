"""The students of mobile text-to-image, and the words every part shares."""

__version__ = "0.1.0"
