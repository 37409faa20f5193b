"""The shipped file: preprocessing, backbone and head in one ONNX graph.

contract     inputs and outputs
graph        building it from the nodes before the trunk, the backbone's trunk, and the head;
             constants in place of shapes that are known
image_nodes  resize, crop and arithmetic on pixels
fixed_resize resize and crop of images of one shape, for runtimes that resize otherwise
runtimes     what else runs exported files: what each needs, and a trial where it is installed
seal         the sealed header, read from the bytes of a file
hub          models of Hugging Face's hub, fetched to a cache: hf:USER/NAME
session      opening it and running it over images (ONNX Runtime, no torch)
providers    execution providers: asked for, here, started
proof        comparing file and head on real images
references   reference images of a proof, known by content
prediction   the answers for images, also as rows of a table
tails        features of a feature file through the network behind its cut
staleness    whether a head was trained on what its feature file holds today
"""
