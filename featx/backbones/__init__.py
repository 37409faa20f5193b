"""The frozen network, and running it.

catalog      which backbones there are; the spec of one feature
weights      finding, checking and reading weights
network      the module that ends at the chosen layer
tiny         the bundled backbone
engines      running the network over batches
onnx_graph   the network as an ONNX graph
"""
