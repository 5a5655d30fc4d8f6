"""MQTT 3.1, 3.1.1 and 5.0: bytes to packets and back, and nothing else.

Pure: no sockets, clocks or broker rules. Others use `codec` (all of the translation), `packets` (the values),
`properties`, `topics` (the rules for names and filters) and `reasons`: the reason codes and `ProtocolError`, the only
exception that decoding raises whatever the bytes are. `framing`, `decoder` and `encoder` are what `codec` is made of.
"""
