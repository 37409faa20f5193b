"""Train the tail of a network on cached activations.

options     what is asked, and the recipe
outcome     results and events
fit         from a feature file to a tail and head
problem     what is learnt: labels, loss, held-out samples
heads       the probe to compare with, the layers that training starts from, heads as modules
training    choosing a learning rate, then training, resumed where it stopped
loop        epochs: losses, gradients, the best state
data        batches of activations, from memory or from the file
groups      which parameters have which learning rate and decay
checkpoint  the state of an unfinished training
"""
