"""Train the tail of a network on cached activations.

options    the recipe
loop       training a tail and the head behind it, resumed to the bit
"""
