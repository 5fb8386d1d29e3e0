import base64
import hashlib
import hmac
import json
import os
import re
import time
from pathlib import Path


def secret():
    """JWT_SECRET, or what is in the file JWT_SECRET_FILE, without a line break at its end."""
    path = os.environ.get("JWT_SECRET_FILE")
    text = Path(path).read_bytes() if path else os.environ.get("JWT_SECRET", "").encode()
    key = re.sub(rb"\r?\n\Z", b"", text)
    if len(key) < 32:
        raise ValueError("JWT_SECRET needs at least 32 bytes")
    return key


def issue_token(user, role, sessions, seconds):
    """For a user who is signed in to the application. Sessions are the user's own; ["*"] is
    for agents and admins who may enter all of them."""
    now = int(time.time())
    claims = {
        "sub": user,
        "role": role,  # customer, agent or admin
        # None would mean all of an agent's.
        "sessions": "*" if sessions == ["*"] else list(sessions or []),
        "iat": now,
        "exp": now + seconds,
    }
    for claim, variable in ("iss", "JWT_ISSUER"), ("aud", "JWT_AUDIENCE"):
        if os.environ.get(variable):
            claims[claim] = os.environ[variable]

    def encode(data):
        return base64.urlsafe_b64encode(data).rstrip(b"=")

    head = {"alg": "HS256", "typ": "JWT"}
    signed = b".".join(encode(json.dumps(part).encode()) for part in (head, claims))
    mac = hmac.new(secret(), signed, hashlib.sha256).digest()
    return (signed + b"." + encode(mac)).decode()


# The command line: python3 issue_token.py USER ROLE SECONDS [SESSION...]
if __name__ == "__main__":
    import sys
    user, role, seconds, *sessions = sys.argv[1:]
    print(issue_token(user, role, sessions, int(seconds)))
