"""The rules of one node: sessions, queues, routing. Pure: no sockets, files, clocks or chance."""
