"""The CNN's engines: what runs the network, behind one small interface.

base         the interface
densenet     the network as names, shapes and constants; which tensors of a set of weights are served
pytorch      MPS, CUDA and CPU; also what every other engine is held against
onnxruntime  CPU; its graph is written by `onnx_graph`
precision    whether the weights may serve in half precision: what their card must say
batching     one owner of the network on a GPU; films that arrive together share a pass
reference    what PyTorch computes on a few films, kept between starts; an engine that differs does not serve
choice       which engine serves, from settings and machine
"""
