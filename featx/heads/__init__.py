"""Heads: their file, tasks, scores and solvers.

head           the artifact; applying it; folding standardisation
describe       head and training in words
verdict        scores compared with a constant answer, and with each other
provenance     digests of the rows that trained a head, and changes since
tasks/         one class, several tags, or numbers: an object of all that depends on it
samples/       training samples in blocks, folds and draws, and what each counts
solvers/       fitting: pure functions of arrays, or of samples in blocks
"""
