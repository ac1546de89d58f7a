"""A simulated Ollama for the demo and the tests: real wire behaviour, invented words, no model.

`python -m gateway.simulated --listen 127.0.0.1:0` runs it as its own process; `app(settings)` is the same as an ASGI
application. It says that it is simulated wherever the protocol has room for it.
"""

from gateway.simulated.application import app
from gateway.simulated.engine import Engine, Settings

__all__ = ["Engine", "Settings", "app"]
