"""Control edits, with which methods and evaluations are compared."""
