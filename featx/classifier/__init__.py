"""The shipped file: preprocessing, backbone and head in one ONNX graph.

contract     inputs and outputs
graph        building it from the nodes before the trunk, the backbone's trunk, and the head
image_nodes  resize, crop and arithmetic on pixels
seal         the sealed header, read from the bytes of a file
session      opening and running it (ONNX Runtime, no torch), with chosen providers
runner       running it over images
proof        comparing file and head on real images
references   reference images of the proof, known by content
staleness    whether a head was trained on what its feature file holds today
"""
