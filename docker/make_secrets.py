"""Makes the secret files that the Compose files mount, each random, into docker/secrets/ (ignored by git).

Existing files are kept. The folder is closed to others (0700). The files inside are world-readable, because each
container runs as its own user and sees only the files mounted into it.
"""

import secrets
from pathlib import Path

FOLDER = Path(__file__).resolve().parent / "secrets"
RANDOM = ("postgres_password", "app_password", "redis_password", "vllm_key", "grafana_password")
URLS = {
    "owner_url": ("postgres_password", "postgresql://fairgate:{}@postgres:5432/fairgate"),
    "store_url": ("app_password", "postgresql://fairgate_app:{}@postgres:5432/fairgate"),
    "shared_url": ("redis_password", "redis://:{}@redis:6379/0"),
}


def write(name: str, value: str) -> str:
    """Write the file unless it exists -> its value."""
    path = FOLDER / name
    if path.exists():
        return path.read_text(encoding="utf-8")
    path.write_text(value, encoding="utf-8")
    path.chmod(0o444)
    print(f"made {path.relative_to(FOLDER.parent.parent)}")
    return value


def main() -> None:
    FOLDER.mkdir(mode=0o700, exist_ok=True)
    made = {name: write(name, secrets.token_hex(24)) for name in RANDOM}
    for name, (password, url) in URLS.items():
        write(name, url.format(made[password]))


if __name__ == "__main__":
    main()
