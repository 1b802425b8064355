"""How good a picture is, measured without a learned part."""
