"""Times as people write them. Pure."""

import datetime


def moment(text: str, zone: datetime.tzinfo | None = datetime.UTC) -> int:
    """ISO 8601 -> Unix microseconds. Without an offset it is a time of `zone`; None: of this machine's. Raises
    ValueError."""
    try:
        found = datetime.datetime.fromisoformat(text)
        return int((found if found.tzinfo else found.replace(tzinfo=zone)).timestamp() * 1e6)
    except (ValueError, OverflowError) as err:
        raise ValueError(f"{text!r} is not an ISO 8601 time") from err
