"""What a head answers: one class, tags, or numbers.

task            the names of the tasks, and what a header says of them
targets         labels as class indices, tags or numbers
losses          loss functions and how samples are divided for them
thresholds      the probability from which on each tag is given
"""
