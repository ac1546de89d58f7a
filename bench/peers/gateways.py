"""Gateways people use: two routers in Rust, LiteLLM's proxy, Portkey. One worker each, as documented."""

from __future__ import annotations

import json
import os
import shutil
import subprocess

from bench.peers.base import Peer, distribution, free_port, make_venv


class _FromPyPI(Peer):
    package = ""

    def install(self) -> None:
        make_venv(self.kept, [self.package])

    def missing(self) -> str | None:
        return None if (self.kept / "venv" / ".ready").exists() else f"{self.package} is not installed"

    def program(self, name: str) -> str:
        return str(self.kept / "venv" / "bin" / name)

    def version(self) -> str:
        return distribution(self.kept / "venv" / "bin" / "python", self.package.partition("[")[0])


class VllmRouter(_FromPyPI):
    """The vLLM project's router (Rust), one runtime thread."""

    name = "vllm-router"
    package = "vllm-router"
    note = "no key check"

    def environment(self) -> dict[str, str]:
        return {"TOKIO_WORKER_THREADS": "1"}

    def command(self) -> list[str]:
        own = ["--host", "127.0.0.1", "--port", str(self.port), "--policy", "round_robin", "--log-level", "warning"]
        limits = ["--prometheus-port", str(free_port()), "--max-concurrent-requests", "100000"]
        return [self.program("vllm-router"), "--worker-urls", f"http://127.0.0.1:{self.backend_port}", *own, *limits]


class SglangRouter(_FromPyPI):
    """SGLang's router (Rust), one runtime thread."""

    name = "sglang-router"
    package = "sglang-router"
    note = "no key check"
    speaks = frozenset({"openai"})

    def environment(self) -> dict[str, str]:
        return {"TOKIO_WORKER_THREADS": "1"}

    def command(self) -> list[str]:
        own = ["--host", "127.0.0.1", "--port", str(self.port), "--policy", "round_robin", "--log-level", "warn"]
        limits = ["--prometheus-port", str(free_port()), "--max-concurrent-requests", "100000"]
        launch = [self.program("python"), "-m", "sglang_router.launch_router"]
        return [*launch, "--worker-urls", f"http://127.0.0.1:{self.backend_port}", *own, *limits]


class LiteLlm(_FromPyPI):
    """LiteLLM's proxy: one model, no database, no key check, telemetry off."""

    name = "litellm"
    slow = True
    package = "litellm[proxy]"
    note = "no database, no key check"
    speaks = frozenset({"openai"})
    exact = False
    usage_hidden = False

    def environment(self) -> dict[str, str]:
        return {
            "LITELLM_TELEMETRY": "False",
            "LITELLM_LOCAL_MODEL_COST_MAP": "True",
            "LITELLM_LOG": "ERROR",
            "LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true",
        }

    def command(self) -> list[str]:
        base = f"http://127.0.0.1:{self.backend_port}/v1"
        model = {"model": "openai/bench", "api_base": base, "api_key": "none"}
        config = self.folder / "config.yaml"  # JSON is YAML
        config.write_text(json.dumps({"model_list": [{"model_name": "bench", "litellm_params": model}]}))
        own = ["--host", "127.0.0.1", "--port", str(self.port), "--num_workers", "1"]
        return [self.program("litellm"), "--config", str(config), *own]


class Portkey(Peer):
    """Portkey's open gateway on node, routed by headers as its documentation shows."""

    name = "portkey"
    slow = True
    note = "node, routed by headers"
    speaks = frozenset({"openai"})
    exact = False
    usage_hidden = False
    package = "@portkey-ai/gateway"

    def install(self) -> None:
        if shutil.which("npm") and not (self.kept / "node_modules").exists():
            command = ["npm", "install", "--no-fund", "--no-audit", "--prefix", str(self.kept), self.package]
            subprocess.run(command, check=True, capture_output=True)

    def missing(self) -> str | None:
        if not shutil.which("node"):
            return "node is not installed (Debian: apt-get install nodejs npm)"
        return None if (self.kept / "node_modules").exists() else f"{self.package} is not installed"

    def environment(self) -> dict[str, str]:
        return {"PORT": str(self.port), "NODE_ENV": "production"}

    def command(self) -> list[str]:
        script = self.kept / "node_modules" / "@portkey-ai" / "gateway" / "build" / "start-server.js"
        return ["node", str(script), f"--port={self.port}", "--headless"]

    def headers(self) -> list[str]:
        base = f"http://127.0.0.1:{self.backend_port}/v1"
        return ["x-portkey-provider: openai", f"x-portkey-custom-host: {base}", "Authorization: Bearer none"]

    def version(self) -> str:
        manifest = self.kept / "node_modules" / "@portkey-ai" / "gateway" / "package.json"
        node = subprocess.run(["node", "--version"], capture_output=True, text=True, check=False, env=dict(os.environ))
        return f"portkey {json.loads(manifest.read_text())['version']}, node {node.stdout.strip()}"
