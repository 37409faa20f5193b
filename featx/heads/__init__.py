"""What is trained: the head's file, and one module per way to fit one.

    head           the artifact; applying it; folding standardisation
    task           one class, several tags, or numbers, and
    targets        what labels mean to it
    linear         L2-regularised logistic regression along a path of strengths, by
    path           the path of strengths, and the best of them
    logistic       the objective, evaluated for many problems in one pass over the features,
    lbfgs          many smooth convex problems at once, and
    moments        mean and deviation of features, block by block
    rows           features that are read block by block
    basis          standardised features and the eigenbasis of their covariance
    losses         what is made small: of classes, tags or numbers
    ridge          least squares on numbers or one-hot targets, judged by leave-one-out
    centroid       nearest centroid by cosine
    sgd            the tutorials' recipe
    mlp            hidden layers, AdamW, early stopping, on
    mlp_options    shape and training of these
    dense          perceptrons of one shape, trained side by side
    device         what the products run on, where it is not numpy, by
    on_torch       torch
    streamed       the same heads on features that do not fit into memory
    with_sklearn   scikit-learn's logistic regression
    fit            one way to call them all
    few_shot       drawing a few samples of each class, again and again
    provenance     which rows trained a head, and whether they have changed
    class_weight   what a sample counts, by its class
    folds          stratified folds, and what was held out
    tag_folds      folds that spread every tag
    thresholds     from which probability on a tag is given
    calibration    a temperature for the logits
    metrics/       scores, one module for each task

Fitting is a pure function of arrays.
"""
