"""Training samples: read in blocks, divided into folds, weighted, drawn.

rows            features that are read block by block, and statistics of a first pass
moments         mean and scale of each feature
pools           samples in random order from blocks
folds, tag_folds    who is held out when
selection       the subsample that is kept in memory
weights         what a sample counts, by its class
few_shot        draws of a few samples of each class
"""
