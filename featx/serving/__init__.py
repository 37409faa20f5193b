"""A model behind HTTP: ``featx serve``.

- ``supervisor``: the process that is started: the port, the workers, signals
- ``worker``: the processes that answer
- ``app``: what is asked at which path
- ``protocol_v2``: messages of the Open Inference Protocol
- ``requests``: bodies, forms, tokens and errors
- ``connections``: limits on how slowly requests may come
- ``batches``: images that wait together go to the model together
- ``model``: what is served, and what may take its place
- ``metrics``: counters for Prometheus
- ``options``: address and limits
"""
