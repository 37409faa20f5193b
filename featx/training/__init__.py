"""From a feature file to a fitted head: what to train on, fit, score.

options    what a user chooses, and the report
samples    what the feature file gives to train on, and what is wrong with it
memory     how much memory there is, and whether the features fit into it
fitting    one head, or one for each draw of a few samples, in memory or in blocks
"""
