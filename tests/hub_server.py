"""A stand-in for the Hugging Face Hub on loopback: repositories in memory, with access as the Hub grants it."""

import base64
import hashlib
import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

TOKEN = "hf_let_me_in"


@dataclass
class Repository:
    """Files by name; a private one is shown, and files of a gated one are given, to the holder of TOKEN only."""

    files: dict[str, bytes] = field(default_factory=dict)
    private: bool = False
    gated: bool = False

    @property
    def sha(self) -> str:
        content = b"".join(name.encode() + self.files[name] for name in sorted(self.files))
        return hashlib.sha1(content).hexdigest()


class Hub(ThreadingHTTPServer):
    """Answers the requests of huggingface_hub; `requests` lists them."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories: dict[str, Repository] = {}
        self.requests: list[str] = []
        self.address = f"http://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, daemon=True).start()


class Handler(BaseHTTPRequestHandler):
    """One request."""

    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, *_):
        pass

    def answer(self, content: bytes | dict | list = b"", status: int = 200, **headers: str) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def reject(self, status: int, code: str, message: str) -> None:
        self.answer({"error": message}, status, X_Error_Code=code, X_Error_Message=message)

    @property
    def has_access(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def find(self, repo_id: str) -> Repository | None:
        """The repository; None if an error was answered."""
        found = self.server.repositories.get(repo_id)
        if "Authorization" in self.headers and not self.has_access:
            self.reject(401, "", "Invalid credentials in Authorization header")
        elif found is None or (found.private and not self.has_access):
            self.reject(404 if self.has_access else 401, "RepoNotFound", "Repository not found")
        else:
            return found
        return None

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        self.server.requests.append(f"{self.command} {path}")
        parts = path.strip("/").split("/")
        if parts == [""]:
            return self.answer()
        repo_id = "/".join(parts[2:4] if parts[0] == "api" else parts[:2])
        found = self.find(repo_id)
        if found is None:
            return None
        if parts[0] != "api":
            return self.file(found, parts[3], "/".join(parts[4:]))
        revision = parts[5] if len(parts) > 5 else "main"
        if revision not in ("main", found.sha):
            return self.reject(404, "RevisionNotFound", "Invalid rev id")
        if parts[4:5] == ["tree"]:
            rows = [
                {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                for name, content in found.files.items()
            ]
            return self.answer(rows)
        names = [{"rfilename": name} for name in found.files]
        return self.answer({"id": repo_id, "sha": found.sha, "private": found.private, "siblings": names})

    def file(self, found: Repository, revision: str, name: str) -> None:
        if revision not in ("main", found.sha):
            return self.reject(404, "RevisionNotFound", "Invalid rev id")
        if found.gated and not self.has_access:
            return self.reject(401, "GatedRepo", "Access to this model is restricted")
        if name not in found.files:
            return self.answer(b"", 404, X_Error_Code="EntryNotFound", X_Repo_Commit=found.sha)
        content = found.files[name]
        etag = f'"{hashlib.sha1(content).hexdigest()}"'
        return self.answer(content, ETag=etag, X_Repo_Commit=found.sha)

    def do_POST(self) -> None:
        path = urlsplit(self.path).path
        self.server.requests.append(f"POST {path}")
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if not self.has_access:
            return self.reject(401, "", "Invalid username or password.")
        parts = path.strip("/").split("/")
        if parts == ["api", "repos", "create"]:
            about = json.loads(body)
            repo_id = f"{about['organization']}/{about['name']}"
            private = bool(about.get("private", about.get("visibility") == "private"))
            if repo_id in self.server.repositories:
                return self.answer({"error": "exists", "url": f"{self.server.address}/{repo_id}"}, 409)
            self.server.repositories[repo_id] = Repository(private=private)
            return self.answer({"url": f"{self.server.address}/{repo_id}"})
        if parts == ["api", "validate-yaml"]:
            return self.answer({"errors": [], "warnings": []})
        repo_id, action = "/".join(parts[2:4]), parts[4]
        if action == "preupload":
            files = [{**one, "uploadMode": "regular", "shouldIgnore": False} for one in json.loads(body)["files"]]
            return self.answer({"files": files})
        found = self.server.repositories[repo_id]
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "file":
                found.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        commit = f"{self.server.address}/{repo_id}/commit/{found.sha}"
        return self.answer({"commitUrl": commit, "commitOid": found.sha, "success": True})
