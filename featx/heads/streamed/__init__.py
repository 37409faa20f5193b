"""Fitting heads on features that do not fit into memory: pass after pass over ``Rows``.

    selection   what is chosen, calibrated or judged on samples that are kept in memory
    linear      logistic regression: strength chosen on a sample, refit on all
    ridge       closed form, judged by leave-one-out
    centroid    nearest centroid by cosine
    pools       samples in random order, from pieces in random order
    sgd         the tutorials' recipe
    mlp         hidden layers, AdamW, early stopping

Each has the optimum, or learns as well, as its namesake on arrays.
"""
