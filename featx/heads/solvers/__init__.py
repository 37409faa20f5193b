"""Fitting heads to features, in memory or block by block.

linear          logistic regression: chooses the strength; logistic and lbfgs solve it, in the
                eigenbasis
ridge           closed form, leave-one-out
centroid        nearest centroid by cosine
sgd             the tutorials' recipe
mlp             hidden layers, AdamW, early stopping
with_sklearn    logistic regression by scikit-learn
"""
