"""Train a head on a feature file.

options    options and report; free memory
samples    samples to train on, checked
fitting    one head, or one for each draw of a few samples, in memory or in blocks
"""
