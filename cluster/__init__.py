"""Other nodes: who they are, what they want, and the streams that carry it there.

Everything here is pure but `transport`, which holds the ZeroMQ sockets. `node` joins the cluster to
the queue-owner of `broker.core`; `broker.core` never imports this package.
"""
