"""The backbone in integers.

calibrate    measuring the table of activation ranges, and narrowing it to what keeps the features
quantize     the nodes that can run in int8, and the graph in int8 by a table
"""
