"""What models the simulated Ollama has, and how Ollama describes and names them. Pure.

Owns: model names, their invented facts (size, digest, capabilities), the list and show bodies.
Must not know: what is loaded, HTTP.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

DEFAULT_MODELS = ("llama3.2:3b", "qwen2.5-coder:7b", "qwen3:4b", "nomic-embed-text:latest")

_MODIFIED = "2025-01-01T12:00:00.000000+00:00"
_MODIFIED_UNIX = 1735732800
_CONTEXT = 8192
_EMBEDDING_LENGTH = 256
_THINKERS = ("qwen3", "r1", "think", "gpt-oss", "reason")


@dataclass(frozen=True)
class Model:
    """One installed model; `name` always carries its tag."""

    name: str
    capabilities: tuple[str, ...]
    parameter_size: str
    size: int
    digest: str

    @property
    def embeds_only(self) -> bool:
        """Whether chat and generate are refused."""
        return "completion" not in self.capabilities

    @property
    def thinks(self) -> bool:
        """Whether `think` is understood (and on when absent)."""
        return "thinking" in self.capabilities

    @property
    def embedding_length(self) -> int:
        """Numbers in one embedding vector."""
        return _EMBEDDING_LENGTH

    def details(self) -> dict[str, Any]:
        """The `details` object of tags, ps and show."""
        return {
            "parent_model": "",
            "format": "gguf",
            "family": "simulated",
            "families": ["simulated"],
            "parameter_size": self.parameter_size,
            "quantization_level": "Q4_K_M",
        }

    def listed(self) -> dict[str, Any]:
        """One element of `GET /api/tags`."""
        return {
            "name": self.name,
            "model": self.name,
            "modified_at": _MODIFIED,
            "size": self.size,
            "digest": self.digest,
            "details": self.details(),
        }

    def running(self, expires_at: str) -> dict[str, Any]:
        """One element of `GET /api/ps`; `expires_at` is RFC 3339."""
        return {
            "name": self.name,
            "model": self.name,
            "size": self.size,
            "digest": self.digest,
            "details": self.details(),
            "expires_at": expires_at,
            "size_vram": self.size,
            "context_length": _CONTEXT,
        }

    def shown(self) -> dict[str, Any]:
        """The body of `POST /api/show`."""
        return {
            "license": "Simulated model of the fairgate demo: there are no weights.",
            "modelfile": f"# simulated\nFROM {self.name}\n",
            "parameters": 'stop                           "<|eot_id|>"',
            "template": "{{ .Prompt }}",
            "details": self.details(),
            "model_info": {
                "general.architecture": "simulated",
                "general.parameter_count": self.size,
                "simulated.context_length": _CONTEXT,
                "simulated.embedding_length": _EMBEDDING_LENGTH,
            },
            "capabilities": list(self.capabilities),
            "modified_at": _MODIFIED,
        }

    def openai(self, model_id: str) -> dict[str, Any]:
        """The OpenAI model object; the owner is the namespace part of the name."""
        namespace = model_id.rpartition("/")[0].rpartition("/")[2] or "library"
        return {"id": model_id, "object": "model", "created": _MODIFIED_UNIX, "owned_by": namespace}


class Catalog:
    """The installed models by name, in the order given; a name without a tag means `:latest`."""

    def __init__(self, names: Iterable[str]) -> None:
        self._models = {full_name(name): _invent(full_name(name)) for name in names}

    def find(self, name: str) -> Model | None:
        """The model called `name`, or None."""
        return self._models.get(full_name(name))

    def all(self) -> list[Model]:
        """Every installed model."""
        return list(self._models.values())


def full_name(name: str) -> str:
    """`name` with its tag: Ollama adds `:latest` where none is given."""
    return name if ":" in name.rpartition("/")[2] else f"{name}:latest"


def _invent(name: str) -> Model:
    lowered = name.lower()
    if "embed" in lowered:
        capabilities: tuple[str, ...] = ("embedding",)
    elif any(part in lowered for part in _THINKERS):
        capabilities = ("completion", "tools", "thinking")
    elif "coder" in lowered:
        capabilities = ("completion", "tools", "insert")
    else:
        capabilities = ("completion", "tools")
    tag = name.rpartition(":")[2].upper()
    billions = float(tag[:-1]) if tag.endswith("B") and tag[:-1].replace(".", "", 1).isdigit() else 0.137
    return Model(
        name=name,
        capabilities=capabilities,
        parameter_size=f"{billions:g}B" if billions >= 1 else f"{billions * 1000:g}M",
        size=int(billions * 630_000_000),
        digest=hashlib.sha256(b"simulated " + name.encode()).hexdigest(),
    )
