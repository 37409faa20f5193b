"""Training samples: read, divided into folds, weighted, drawn.

data        features in memory or in blocks, and batches in random order
statistics  mean, deviation and correlation of features
folds       which samples are held out together
selection   the subsample that is kept in memory; draws of a few samples; class weights
"""
