"""Train a head on a feature file.

options    options and report
samples    samples to train on, checked
memory     free memory, and whether the features fit into it
fitting    one head, or one for each draw of a few samples, in memory or in blocks
"""
