"""From a feature file to a fitted head: what to train on, fit, score.

options         what a user chooses, and the report
samples         what the feature file gives to train on, and what is wrong with it
fitting         one head, or one for each draw of a few samples
solving         in memory: one call for every solver
blocks          from the file, block by block
answers         targets as a solver takes them, and its layers as the head's
scoring         scores on every split
memory, resources    how much memory there is, and what is multiplied where
"""
