"""Engines with the parts of Docker's API that a migration uses, which kill their client if they are told to.

Objects are kept in memory; archives are real. Two engines and their threads live in one process of their own.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import os
import signal
import socket
import socketserver
import struct
import tarfile
import threading
import urllib.parse
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler

VERSION = {"ApiVersion": "1.45", "MinAPIVersion": "1.24", "Arch": "amd64"}
_numbers = itertools.count(1)


def digest(data):
    return hashlib.sha256(data).hexdigest()


class GoneError(Exception):
    """What was asked for is not there."""


class TakenError(Exception):
    """What was to be made is there, or in use."""


class Engine:
    """An engine's objects.

    Attributes:
        kill: at which change the client is killed, and when: before, during or after it.
        changes: how many were asked for; ``uploads`` are the numbers of those whose body streams.
    """

    def __init__(self, name):
        self.name = name
        self.images, self.tags = {}, {}
        self.volumes, self.networks, self.containers = {}, {}, {}
        self.kill = (0, "")
        self.changes, self.uploads = 0, []
        self.lock = threading.RLock()

    def add_image(self, layer, tags=(), labels=None):
        config = {
            "os": "linux",
            "architecture": "amd64",
            "created": "2026-01-01T00:00:00Z",
            "config": {"Labels": labels or {}},
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest(layer)}"]},
        }
        return self.take_image(json.dumps(config).encode(), layer, tags)

    def take_image(self, config, layer, tags=()):
        number = f"sha256:{digest(config)}"
        self.images[number] = (config, layer)
        self.tags.update(dict.fromkeys(tags, number))
        return number

    def image(self, name):
        number = self.tags.get(name, self.tags.get(f"{name}:latest", name))
        if number not in self.images:
            raise GoneError(name)
        config, layer = self.images[number]
        told = json.loads(config)
        return {
            "Id": number,
            "RepoTags": sorted(tag for tag, known in self.tags.items() if known == number),
            "RepoDigests": [],
            "Size": len(layer),
            "RootFS": {"Layers": told["rootfs"]["diff_ids"]},
            "Os": told["os"],
            "Architecture": told["architecture"],
            "Created": told["created"],
            "Config": told["config"],
        }

    def saved(self, names):
        parts, listing = {}, []
        for name in names:
            config, layer = self.images[self.image(name)["Id"]]
            parts[f"blobs/sha256/{digest(config)}"] = config
            parts[f"blobs/sha256/{digest(layer)}"] = layer
            place = f"blobs/sha256/{digest(config)}"
            listing.append({"Config": place, "Layers": [f"blobs/sha256/{digest(layer)}"], "RepoTags": None})
        parts["manifest.json"] = json.dumps(listing).encode()
        return packed([(plain(name, len(data)), data) for name, data in parts.items()])

    def load(self, data):
        with tarfile.open(fileobj=io.BytesIO(data)) as tar:
            parts = {member.name: tar.extractfile(member).read() for member in tar.getmembers()}
        for one in json.loads(parts["manifest.json"]):
            self.take_image(parts[one["Config"]], parts[one["Layers"][0]])

    def volume(self, name, options=None, labels=None):
        root = plain("", 0)
        root.type, root.mode = tarfile.DIRTYPE, 0o755
        made = f"2026-01-01T00:00:{next(_numbers)}Z"
        told = {"Name": name, "Driver": "local", "Options": options, "Labels": labels, "CreatedAt": made}
        return self.volumes.setdefault(name, {"told": told, "tree": {"": (root, b"")}})

    def container(self, name, wanted):
        if any(one["Name"] == f"/{name}" for one in self.containers.values()):
            raise TakenError(name)
        number = digest(os.urandom(16))
        mounts = []
        for one in (wanted.get("HostConfig") or {}).get("Mounts") or ():
            self.volume(one["Source"])
            mounts.append({"Type": "volume", "Name": one["Source"], "Destination": one["Target"], "RW": True})
        config = {
            key: value for key, value in wanted.items() if key not in {"HostConfig", "NetworkingConfig"}
        }
        ends = (wanted.get("NetworkingConfig") or {}).get("EndpointsConfig") or {}
        self.containers[number] = {
            "Id": number,
            "Name": f"/{name or number[:8]}",
            "Image": self.image(wanted["Image"])["Id"],
            "State": {"Status": "created", "StartedAt": ""},
            "Config": {"Hostname": number[:12], **config},
            "HostConfig": wanted.get("HostConfig") or {},
            "Mounts": mounts,
            "NetworkSettings": {"Networks": ends},
        }
        return number

    def named(self, name):
        for number, one in self.containers.items():
            if number == name or one["Name"] == f"/{name}":
                return one
        raise GoneError(name)

    def mounted(self, name, path):
        for one in self.named(name)["Mounts"]:
            if one["Destination"] == path:
                return self.volumes[one["Name"]]["tree"]
        raise GoneError(path)

    def archive(self, name, path):
        base = path.rpartition("/")[2]
        parts = []
        for place, (member, data) in sorted(self.mounted(name, path).items()):
            copy = member.replace(name=f"{base}/{place}".rstrip("/"), deep=False)
            parts.append((copy, data))
        return packed(parts)

    def unpack(self, name, data):
        """Take entries as far as they came, as an engine does."""
        try:
            with tarfile.open(fileobj=io.BytesIO(data), mode="r|") as tar:
                for member in tar:
                    base, _, place = member.name.partition("/")
                    content = tar.extractfile(member).read() if member.isfile() else b""
                    self.mounted(name, f"/{base}")[place] = (member, content)
        except (tarfile.TarError, EOFError):
            return

    def delete_volume(self, name):
        if name not in self.volumes:
            raise GoneError(name)
        if any(mount["Name"] == name for one in self.containers.values() for mount in one["Mounts"]):
            raise TakenError(name)
        del self.volumes[name]

    def described(self):
        """All that a user would see."""
        named = {one["Id"]: one["Name"] for one in self.containers.values()}
        return {
            "images": {number: self.image(number)["RepoTags"] for number in self.images},
            "volumes": {
                name: [one["told"]["Labels"], one["told"]["Options"], digest(packed(tree(one)))]
                for name, one in self.volumes.items()
            },
            "networks": {one["Name"]: one["Labels"] for one in self.networks.values()},
            "containers": {
                named[number]: [
                    one["State"]["Status"],
                    one["HostConfig"],
                    one["NetworkSettings"],
                    one["Image"],
                ]
                for number, one in self.containers.items()
            },
        }


def plain(name, size):
    info = tarfile.TarInfo(name)
    info.size = size
    return info


def tree(volume):
    return [
        (member.replace(name=place or "."), data) for place, (member, data) in sorted(volume["tree"].items())
    ]


def packed(parts):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for member, data in parts:
            tar.addfile(member, io.BytesIO(data))
    return file.getvalue()


class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, path, engine):
        self.engine = engine
        super().__init__(str(path), Handler)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        """Say nothing."""

    def address_string(self):
        return "unix"

    def client(self):
        peer = self.connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        return struct.unpack("3i", peer)[0]

    def body(self, limit=None):
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        data = b""
        while size := int(self.rfile.readline() or b"0", 16):
            data += self.rfile.read(size)
            self.rfile.readline()
            if limit is not None and len(data) > limit:
                return data[:limit]
        self.rfile.readline()
        return data

    def answer(self, status, value=None):
        data = value if isinstance(value, bytes) else b"" if value is None else json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do(self):
        engine = self.server.engine
        url = urllib.parse.urlsplit(self.path)
        words = url.path.strip("/").split("/")
        if words[0].startswith("v1."):
            words = words[1:]
        query = urllib.parse.parse_qs(url.query)
        counted = self.command not in {"GET", "HEAD"} and words != ["_tell"]
        with engine.lock:
            engine.changes += counted
            kill, when = engine.kill if counted and engine.changes == engine.kill[0] else (0, "")
            if kill and when == "before":
                os.kill(self.client(), signal.SIGKILL)
                return
            if counted and self.headers.get("Transfer-Encoding") == "chunked":
                engine.uploads.append(engine.changes)
            body = self.body(1300 if when == "during" else None)
            if kill and when == "during":
                os.kill(self.client(), signal.SIGKILL)
                if words[0] == "images":
                    return
            try:
                status, value = self.route(engine, words, query, body)
            except GoneError as error:
                status, value = 404, {"message": f"no such thing: {error}"}
            except TakenError as error:
                status, value = 409, {"message": f"in the way: {error}"}
            if kill and when == "after":
                os.kill(self.client(), signal.SIGKILL)
                return
        if when != "during":
            self.answer(status, value)

    do_GET = do_POST = do_PUT = do_DELETE = do  # noqa: N815 - names that the base class looks for

    def route(self, engine, words, query, body):  # noqa: C901, PLR0911, PLR0912, PLR0915 - a table
        one = {key: values[0] for key, values in query.items()}
        match self.command, *words:
            case _, "_tell":
                if body:
                    engine.uploads = []
                    engine.kill = tuple(json.loads(body))
                    engine.changes = 0
                return 200, {"changes": engine.changes, "uploads": engine.uploads, **engine.described()}
            case "GET", "version":
                return 200, VERSION
            case "GET", "info":
                return 200, {
                    "ID": engine.name,
                    "NCPU": 2,
                    "Runtimes": {"runc": {}},
                    "Plugins": {"Log": ["json-file"]},
                }
            case "GET", "images", "json":
                marked = "filters" in one
                found = [engine.image(number) for number in engine.images]
                return 200, [each for each in found if not marked or each["Config"]["Labels"]]
            case "GET", "images", "get":
                return 200, engine.saved(query["names"])
            case "GET", "images", *name, "json":
                return 200, engine.image("/".join(name))
            case "POST", "images", "load":
                engine.load(body)
                return 200, {"stream": "Loaded"}
            case "POST", "images", "create":
                label = one["changes"].removeprefix("LABEL ").partition("=")[0]
                return 200, {"status": engine.add_image(body + os.urandom(4), labels={label: "1"})}
            case "POST", "images", *name, "tag":
                engine.tags[f"{one['repo']}:{one['tag']}"] = engine.image("/".join(name))["Id"]
                return 201, None
            case "DELETE", "images", name:
                if any(each["Image"] == name for each in engine.containers.values()):
                    raise TakenError(name)
                del engine.images[engine.image(name)["Id"]]
                return 200, []
            case "GET", "volumes":
                return 200, {"Volumes": [each["told"] for each in engine.volumes.values()]}
            case "GET", "system", "df":
                return 200, {"Volumes": []}
            case "POST", "volumes", "create":
                wanted = json.loads(body)
                return 201, engine.volume(wanted["Name"], wanted["DriverOpts"], wanted["Labels"])["told"]
            case "DELETE", "volumes", name:
                engine.delete_volume(name)
                return 204, None
            case "GET", "networks":
                return 200, list(engine.networks.values())
            case "POST", "networks", "create":
                wanted = json.loads(body)
                if wanted["Name"] in engine.networks:
                    raise TakenError(wanted["Name"])
                engine.networks[wanted["Name"]] = {"Id": f"n-{wanted['Name']}", "Scope": "local", **wanted}
                return 201, {"Id": f"n-{wanted['Name']}"}
            case "GET", "plugins":
                return 200, []
            case "GET", "containers", "json":
                marked = json.loads(one["filters"])["label"][0] if "filters" in one else None
                listed = engine.containers.values()
                return 200, [
                    each
                    for each in listed
                    if marked is None or marked in (each["Config"].get("Labels") or {})
                ]
            case "GET", "containers", name, "json":
                return 200, engine.named(name)
            case "POST", "containers", "create":
                return 201, {"Id": engine.container(one.get("name", ""), json.loads(body))}
            case "DELETE", "containers", name:
                del engine.containers[engine.named(name)["Id"]]
                return 204, None
            case "POST", "containers", name, "rename":
                found = engine.named(name)
                if any(each["Name"] == f"/{one['name']}" for each in engine.containers.values()):
                    raise TakenError(one["name"])
                found["Name"] = f"/{one['name']}"
                return 204, None
            case "POST", "containers", name, "start":
                engine.named(name)["State"]["Status"] = "running"
                return 204, None
            case "GET", "containers", name, "archive":
                return 200, engine.archive(name, one["path"])
            case "PUT", "containers", name, "archive":
                engine.unpack(name, body)
                return 200, None
        return 501, {"message": f"{self.command} {words} is not known here"}


@contextmanager
def serving(*engines):
    """Have ``engines``, pairs of a socket's path and an engine, served by a process of their own."""
    servers = [Server(path, engine) for path, engine in engines]
    pid = os.fork()
    if not pid:
        for server in servers[1:]:
            threading.Thread(target=server.serve_forever, daemon=True).start()
        servers[0].serve_forever()
        os._exit(1)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        for (path, _), server in zip(engines, servers, strict=True):
            server.server_close()
            path.unlink()
