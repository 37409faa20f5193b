"""What is shipped: one ONNX file with preprocessing, backbone and head.

contract  what goes in and what comes out
graph     building it, with graph_builder: geometry (resize, crop), trunk (the backbone), head
seal      what a file's bytes tell before ONNX Runtime sees them
session   opening and running it (ONNX Runtime, no torch)
providers which of ONNX Runtime's execution providers run it
proof     does it answer what the head answered?
accuracy  how it does on labelled images, next to the head
agreement whether two outputs decide the same class, tags, or numbers
precision the backbone in float16
references the images of its proof, known by content
staleness whether a head was trained on what its feature file holds today
"""
