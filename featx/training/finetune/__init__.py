"""Train the tail of a network on cached activations.

options    what is asked, and the recipe
outcome    what it comes to
loop       training a tail and the head behind it, resumed to the bit
"""
