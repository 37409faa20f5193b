"""The shipped file: preprocessing, backbone and head in one ONNX graph.

contract     inputs and outputs
graph        building it from the nodes before the trunk, the backbone's trunk, and the head
image_nodes  resize, crop and arithmetic on pixels
seal         the sealed header, read from the bytes of a file
hub          models of Hugging Face's hub, fetched to a cache: hf:USER/NAME
session      opening it and running it over images (ONNX Runtime, no torch)
proof        comparing file and head on real images; its reference images, known by content
answers      answers as cells of a table
prediction   the answers for images
tails        features of a feature file through the network behind its cut
staleness    whether a head was trained on what its feature file holds today
"""
