"""The frozen network, and running it.

table            which backbones there are, and their names, without torch
listing          the same for Python, as a list and a frame
catalog          building them, and torchvision's records
with_timm        timm's models: names, building, preprocessing, loading
timm_features    what timm calls the features of a model, and their pooling
spec             what one feature means, and what was asked for
weights          finding, checking and reading weights
hub              files from Hugging Face's hub or its cache
licences         the licence of weights, and what has to be said of it
state_dict       finding a network's tensors in a checkpoint, under whatever names
cuts             splitting a network at the input of a module
network          the module that ends at the chosen layer, its stem and its tail
pooling          one vector of maps or tokens
tails            networks with a trained tail in place of their own
with_head        the whole model with a head as its last layer, as a state dict
tiny             the bundled backbone
engines          choosing an engine for batches of pixels; ONNX Runtime on the network's graph
torch_engine     torch, on the CPU, a GPU or several
onnx_graph       the network as an ONNX graph
graph_builder    building and changing ONNX graphs
int8             that graph in integers: quantising by a table of ranges, and measuring it
seal             the bytes of an ONNX file: its seal, and parts that featx does not write
graph_cache      graphs and resolved requests in the user's cache folder
graphs           the graph of a recorded spec: cached, or built
bundled          the graph of the bundled backbone
"""
