"""What is trained: the head's file, its tasks, and one module per way to fit one.

head           the artifact; applying it; folding standardisation
provenance     which rows trained a head, and whether they have changed
calibration    a temperature for the logits
metrics/       scores, one module for each task
tasks/         one class, several tags, or numbers: targets, losses, thresholds
samples/       training samples in blocks, folds and draws, and what each counts
solvers/       fitting: pure functions of arrays, or of samples in blocks
"""
