"""What is trained: the head's file, and one module per way to fit one.

    head           the artifact; applying it; folding standardisation
    linear         L2-regularised logistic regression along a path of strengths, by
    logistic       the objective, evaluated for many problems in one pass over the features,
    lbfgs          many smooth convex problems at once, and
    basis          standardised features and the eigenbasis of their covariance
    mlp            hidden layers, AdamW, early stopping
    with_sklearn   scikit-learn's logistic regression
    folds          stratified folds, and what was held out
    calibration    a temperature for the logits
    metrics        scores from logits and labels

Fitting is a pure function of arrays.
"""
