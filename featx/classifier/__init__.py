"""The shipped file: preprocessing, backbone and head in one ONNX graph.

contract  what goes in and what comes out
graph     building it from the nodes before the trunk, the backbone's trunk, and the head
image_nodes  resize, crop and arithmetic on pixels
seal      what a file's bytes tell before ONNX Runtime sees them
session   opening and running it (ONNX Runtime, no torch), with chosen providers
runner    running it over images
proof     does it answer what the head answered?
references the images of its proof, known by content
staleness whether a head was trained on what its feature file holds today
"""
