"""Load and measurements: they print figures, and assert nothing about time.

`vmq-bench` (load, clients, stamps, report) runs MQTT scenarios on paho-mqtt against any broker and checks loss,
duplicates and order. `python -m bench.pipeline` (pipeline, brokers, pairs.c) compares broker CPU per message with
mosquitto's; `python -m bench.cores` measures the pure cores alone.
"""
