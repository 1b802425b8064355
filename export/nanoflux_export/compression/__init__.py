"""How weights are stored: which ones, and the palettes and integers that stand for them."""
