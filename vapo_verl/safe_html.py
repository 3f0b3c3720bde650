"""What a self-contained page needs to hold untrusted text and to run its own scripts only."""

import base64
import hashlib
import json


def inert_json(value: object) -> str:
    """JSON that cannot end the script element it stands in, nor begin a comment or an entity."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return text.replace("<", r"\u003c").replace(">", r"\u003e").replace("&", r"\u0026")


def policy_hash(text: str) -> str:
    """Source expression that lets a Content-Security-Policy pass this very script or style."""
    digest = hashlib.sha256(text.encode("utf-8")).digest()
    return f"'sha256-{base64.b64encode(digest).decode('ascii')}'"
