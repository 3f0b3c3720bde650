"""The comparisons in the world `forgetful_digits`: see ../plan.md for their questions.

Each strength of forgetting has its own warm start and workspace; rows, arms and seeds are the same.
Finished runs are reported; the same command continues with the rest. Runs of one seed are compared
only if they begin with the same weights.
"""
