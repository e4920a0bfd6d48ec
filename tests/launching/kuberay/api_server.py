"""The one call of a Kubernetes API server that a driver makes: PATCH of a RayJob, with a token, over TLS, by right."""

import json
import secrets
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from tests.launching.kuberay.pods import GATEWAY


class ApiServer:
    """Holds RayJobs and Roles, and the credentials of pods."""

    def __init__(self, place: Path, *, address: str = GATEWAY) -> None:
        self.objects: dict[tuple[str, str], dict] = {}
        self.lock = threading.RLock()
        self.tokens: dict[str, str] = {}
        """Account by token."""
        self.answers: list[int] = []
        self.place, self.address = place, address
        place.mkdir()
        self._certificate, self._key = place / "ca.crt", place / "key.pem"
        words = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=kubernetes"]
        words += ["-addext", f"subjectAltName=IP:{address}", "-keyout", str(self._key), "-out", str(self._certificate)]
        subprocess.run(words, check=True, capture_output=True, timeout=60)
        self.port = 0

    def apply(self, documents: list[dict]) -> None:
        with self.lock:
            for document in documents:
                self.objects[document["kind"], document["metadata"]["name"]] = document

    def credentials(self, account: str, namespace: str) -> Path:
        """The folder that the kubelet mounts for an account."""
        folder = self.place / f"account-{account}"
        folder.mkdir(exist_ok=True)
        token = secrets.token_hex(16)
        self.tokens[token] = account
        (folder / "token").write_text(token)
        (folder / "namespace").write_text(namespace)
        (folder / "ca.crt").write_text(self._certificate.read_text())
        return folder

    def may_patch(self, account: str, name: str) -> bool:
        """Whether a Role that is bound to the account allows it."""
        for (kind, _), binding in self.objects.items():
            if kind != "RoleBinding" or account not in [subject["name"] for subject in binding["subjects"]]:
                continue
            for rule in self.objects["Role", binding["roleRef"]["name"]]["rules"]:
                if "rayjobs" in rule["resources"] and "patch" in rule["verbs"] and name in rule["resourceNames"]:
                    return True
        return False

    def patch(self, path: str, token: str, body: bytes) -> int:
        """The status of the answer."""
        name = path.rpartition("/")[2]
        account = self.tokens.get(token)
        if account is None:
            return 401
        if not self.may_patch(account, name):
            return 403
        with self.lock:
            self.objects["RayJob", name]["spec"].update(json.loads(body)["spec"])
        return 200

    @contextmanager
    def serving(self) -> Iterator[None]:
        server_of_tests = self

        class Handler(BaseHTTPRequestHandler):
            def do_PATCH(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                token = self.headers.get("Authorization", "").removeprefix("Bearer ")
                code = server_of_tests.patch(self.path, token, body)
                server_of_tests.answers.append(code)
                self.send_response(code)
                self.end_headers()

            def log_message(self, format: str, *arguments: object) -> None:
                pass

        server = ThreadingHTTPServer((self.address, 0), Handler)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self._certificate, self._key)
        server.socket = context.wrap_socket(server.socket, server_side=True)
        self.port = server.server_address[1]
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            server.server_close()
            thread.join(timeout=10)
