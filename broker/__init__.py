"""One node of zvmq: MQTT (`mqtt`), the rules (`core`), and the processes that run them (`runtime`)."""

__version__ = "0.1.0"
