"""The stages of a plan: one cut per file, what it measures first and how its student is taught.

Each has `Settings`, `outline(parts, settings)` (the student in shapes, nothing read), `cut(desk,
settings)` and `train(desk, parts, settings, out)`. Where the weights of `outline` are no student
yet, `bare(parts, settings, steps)` makes one with nothing to measure or to learn from.
"""
