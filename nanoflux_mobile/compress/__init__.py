"""Making the student: one file per cut."""
