"""Fitting heads to features: in memory, and block by block (``streamed_…``).

fit             one way to call every solver
linear          logistic regression; logistic and lbfgs solve it, in the eigenbasis
ridge           closed form, leave-one-out
centroid        nearest centroid by cosine
sgd             the tutorials' recipe
mlp             hidden layers, AdamW, early stopping; networks, mlp_options
with_sklearn    logistic regression by scikit-learn
"""
