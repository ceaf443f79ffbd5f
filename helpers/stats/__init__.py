"""Statistics: intervals, tests of equivalence, and the area under the ROC curve."""
