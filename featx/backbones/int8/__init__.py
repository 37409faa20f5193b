"""The backbone in integers.

calibration  the table of activation ranges, as it stands in the spec
calibrate    measuring that table, and narrowing it to what keeps the features
quantisable  what of a graph can run in int8
quantize     the graph in int8, by a table
"""
