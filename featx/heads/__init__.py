"""What is trained: the head's file, and one module per way to fit one.

    head           the artifact; applying it; folding standardisation
    linear         L2-regularised logistic regression, by lbfgs
    lbfgs          many smooth convex problems at once
    mlp            hidden layers, AdamW, early stopping
    with_sklearn   scikit-learn's logistic regression
    folds          stratified folds
    metrics        scores from logits and labels

Fitting is a pure function of arrays.
"""
