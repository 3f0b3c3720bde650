"""The comparisons in the world `forgetful_digits`: see ../plan.md for what they are to show.

Each strength of forgetting has a warm start and a workspace of its own, trained with the same rows,
arms and seeds. What is finished is reported; the same command goes on with the rest. Runs of one
seed are compared only where they begin with the same weights.
"""
