"""The ceilings: no gateway at all, nginx and haproxy as plain streaming proxies with kept upstream connections."""

from __future__ import annotations

from bench import machine
from bench.peers.base import Peer, need_package

NGINX = """\
daemon off;
master_process off;
worker_processes 1;
worker_rlimit_nofile 65536;
pid {folder}/pid;
error_log {folder}/error.log crit;
events {{ worker_connections 24000; }}
http {{
    access_log off;
    keepalive_timeout 300s;
    keepalive_requests 1000000000;
    client_max_body_size 20m;
    client_body_buffer_size 2m;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    upstream backend {{
        server 127.0.0.1:{backend_port};
        keepalive 16384;
        keepalive_requests 1000000000;
        keepalive_timeout 300s;
    }}
    server {{
        listen 127.0.0.1:{port} backlog=4096;
        location / {{
            proxy_pass http://backend;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_buffering off;
            proxy_read_timeout 300s;
        }}
    }}
}}
"""

HAPROXY = """\
global
    maxconn {maxconn}
    nbthread 1
defaults
    mode http
    option http-no-delay
    option http-keep-alive
    http-reuse always
    timeout connect 5s
    timeout client 300s
    timeout server 300s
    timeout http-keep-alive 300s
frontend clients
    bind 127.0.0.1:{port} backlog 4096
    default_backend models
backend models
    server bench 127.0.0.1:{backend_port} pool-purge-delay 300s
"""


class Direct(Peer):
    """The load generator straight on the backend: what the tools themselves cost and reach."""

    name = "direct"
    note = "no gateway; tools share one core"


class Nginx(Peer):
    """Debian's nginx, one process, streaming, nothing logged."""

    name = "nginx"
    note = "plain proxy"

    def missing(self) -> str | None:
        return need_package("nginx-light", "nginx")

    def command(self) -> list[str]:
        config = self.folder / "nginx.conf"
        config.write_text(NGINX.format(folder=self.folder, port=self.port, backend_port=self.backend_port))
        return ["nginx", "-c", str(config)]

    def version(self) -> str:
        return machine.first_line(["nginx", "-v"]).replace("nginx version: ", "").replace("/", " ")


class Haproxy(Peer):
    """Debian's haproxy, one thread, with http-no-delay (without it frames wait about 200 ms)."""

    name = "haproxy"
    note = "plain proxy, http-no-delay"

    def missing(self) -> str | None:
        return need_package("haproxy", "haproxy")

    def command(self) -> list[str]:
        config = self.folder / "haproxy.cfg"
        maxconn = min(30_000, (machine.allow_many_files() - 200) // 2)
        config.write_text(HAPROXY.format(port=self.port, backend_port=self.backend_port, maxconn=maxconn))
        return ["haproxy", "-db", "-f", str(config)]

    def version(self) -> str:
        return " ".join(machine.first_line(["haproxy", "-v"]).split()[:3])
