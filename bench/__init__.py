"""Load and measurements: they print figures, and assert nothing about time.

`vmq-bench` (load, clients, stamps, report) runs MQTT scenarios on paho-mqtt against any broker and checks loss,
duplicates and order. `python -m bench.pipeline` compares broker CPU per message with mosquitto's, and
`python -m bench.scenarios` everything else that one node serves (both: brokers, processes, loaders, tables, and in C
messages.c and connections.c, which share mqtt.h). `python -m bench.cores` measures the pure cores alone.
"""
