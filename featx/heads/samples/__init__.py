"""Training samples: read, divided into folds, weighted, drawn.

data        features in memory or in blocks, their statistics, and batches in random order
folds       which samples are held out together
selection   the subsample that is kept in memory; draws of a few samples; class weights
"""
