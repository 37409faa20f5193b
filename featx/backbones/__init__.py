"""The frozen network, and running it.

catalog          which backbones there are
spec             what one feature means, and what was asked for
weights          finding, checking and reading weights
state_dict       finding a network's tensors in a checkpoint, under whatever names
network          the module that ends at the chosen layer
tiny             the bundled backbone
engines          running the network over batches: torch, or ONNX Runtime on its graph
onnx_graph       the network as an ONNX graph
graph_builder    building and changing ONNX graphs
int8             that graph in integers: ranges, quantising
seal             the bytes of an ONNX file: its seal, and parts that featx does not write
graph_cache      graphs and resolved requests in the user's cache folder
bundled          the graph of the bundled backbone
"""
