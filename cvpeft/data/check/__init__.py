"""Everything that can be wrong with a data set, told at once: one file for each kind of check, and the report."""
