"""Train a head on a feature file, or the tail of its network as well.

options    options and report; free memory
samples    samples to train on, checked
trained    a head as training gives it: finished, and scored
fitting    one head, or one for each draw of a few samples, in memory or in blocks
out_of_fold  what heads say of images that they were not trained on
finetune/  the tail of a network and the head behind it, on cached activations
record     heads as files: header, what a head was made from
"""
