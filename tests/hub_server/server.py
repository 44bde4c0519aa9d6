"""
The HTTP side: the calls that today's `huggingface_hub`, `datasets`, `transformers` and `evaluate` make.

    POST /api/repos/create   POST /api/validate-yaml   GET /api/whoami-v2
    GET  /api/{kind}/{repo}[/revision/{rev}]   GET .../tree/{rev}[/{path}]   POST .../paths-info/{rev}
    POST /api/{kind}/{repo}/preupload/{rev}    POST .../commit/{rev}         POST, GET .../discussions...
    POST /{prefix}{repo}.git/info/lfs/objects/batch   PUT, POST /lfs/...
    HEAD, GET /{prefix}{repo}/resolve/{rev}/{path}

with `kind` one of models, datasets and spaces, and `prefix` empty for models. What fails says why in `X-Error-Code`.
"""

from __future__ import annotations

import asyncio
import json
import re
import threading
from typing import Any
from urllib.parse import unquote

import yaml
from aiohttp import web

from hub_server.faults import Fault, Faults
from hub_server.store import LARGE, Commit, File, PullRequest, Repo, apply


PREFIXES = {"models": "", "datasets": "datasets/", "spaces": "spaces/"}
WHEN = "2026-01-01T00:00:00.000Z"


class HubServer:
    """
    A Hub with one user.

    Args:
        user (`str`, *optional*, defaults to `"me"`): whose namespace can be written.
        token (`str`): the only token that opens it.

    Attributes:
        url (`str`): what `HF_ENDPOINT` is to be.
        repos (`dict[tuple[str, str], Repo]`): by kind and name.
        uploads (`list[str]`): hashes of the large files that arrived whole, in order, parts counted as one.
        calls (`list[str]`): every request as `"METHOD /path"`.
        part_size (`int`, *optional*): files that are larger are asked for in parts of so many bytes.
    """

    def __init__(self, user: str = "me", token: str = "hf_localtoken") -> None:
        self.user, self.token = user, token
        self.repos: dict[tuple[str, str], Repo] = {}
        self.objects: dict[str, bytes] = {}
        self.parts: dict[tuple[str, int], bytes] = {}
        self.uploads: list[str] = []
        self.calls: list[str] = []
        self.faults = Faults()
        self.part_size: int | None = None
        self.url = ""
        self._loop = asyncio.new_event_loop()

    def __enter__(self) -> HubServer:
        started = threading.Event()
        self._thread = threading.Thread(target=self._serve, args=(started,), daemon=True)
        self._thread.start()
        started.wait()
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def repo(self, name: str, kind: str = "datasets") -> Repo:
        """A repository that was made."""
        return self.repos[kind, name]

    def arm(self, *faults: Fault) -> None:
        """Let the next requests fail so; without arguments none."""
        self.faults.armed = list(faults)

    def clear(self) -> None:
        """Forget everything but the address."""
        for kept in (self.repos, self.objects, self.parts, self.uploads, self.calls):
            kept.clear()
        self.arm()
        self.part_size = None

    def put(self, name: str, kind: str, files: dict[str, bytes], private: bool = False) -> Repo:
        """Make a repository with files, as its owner would have pushed them."""
        repo = self.repos[kind, name] = Repo(kind, name, private)
        contents = {path: File(content, path.endswith(LARGE)) for path, content in files.items()}
        self.objects.update({file.sha256: file.content for file in contents.values() if file.large})
        repo.commit("main", contents, "put")
        return repo

    def _serve(self, started: threading.Event) -> None:
        asyncio.set_event_loop(self._loop)
        runner = web.AppRunner(self._app(), access_log=None, shutdown_timeout=0.1)
        self._loop.run_until_complete(runner.setup())
        self._loop.run_until_complete(web.TCPSite(runner, "127.0.0.1", 0).start())
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        started.set()
        self._loop.run_forever()
        self._loop.run_until_complete(runner.cleanup())

    def _app(self) -> web.Application:
        app = web.Application(middlewares=[self._record, self.faults.middleware()], client_max_size=2**30)
        api, repo = (
            "/api/{kind:models|datasets|spaces}/{repo:[^/]+/[^/]+}",
            "{prefix:(datasets/|spaces/)?}{repo:[^/]+/[^/]+}",
        )
        app.router.add_post("/api/repos/create", self._create)
        app.router.add_post("/api/validate-yaml", self._validate)
        app.router.add_get("/api/whoami-v2", self._whoami)
        app.router.add_get(api, self._info)
        app.router.add_get(f"{api}/revision/{{revision}}", self._info)
        app.router.add_get(f"{api}/tree/{{revision}}", self._tree)
        app.router.add_get(f"{api}/tree/{{revision}}/{{path:.*}}", self._tree)
        app.router.add_post(f"{api}/paths-info/{{revision}}", self._paths)
        app.router.add_post(f"{api}/preupload/{{revision}}", self._preupload)
        app.router.add_post(f"{api}/commit/{{revision}}", self._commit)
        app.router.add_post(f"{api}/discussions", self._open)
        app.router.add_get(f"{api}/discussions/{{number}}", self._discussion)
        app.router.add_post(f"{api}/discussions/{{number}}/{{change:status|merge}}", self._change)
        app.router.add_post(f"/{repo}.git/info/lfs/objects/batch", self._batch)
        app.router.add_put("/lfs/{oid}", self._upload)
        app.router.add_put("/lfs/{oid}/{part}", self._upload)
        app.router.add_post("/lfs/{oid}/complete", self._complete)
        app.router.add_post("/lfs/{oid}/verify", self._verify)
        app.router.add_get(f"/{repo}/resolve/{{revision}}/{{path:.*}}", self._resolve)
        return app

    @web.middleware
    async def _record(self, request: web.Request, handler: Any) -> web.StreamResponse:
        self.calls.append(f"{request.method} {request.path}")
        return await handler(request)

    # -- who may do what ---------------------------------------------------------------------------------------------

    def _authorised(self, request: web.Request) -> bool:
        said = request.headers.get("Authorization")
        if said is not None and said != f"Bearer {self.token}":
            raise _refusal(web.HTTPUnauthorized, "", "Invalid credentials in Authorization header")
        return said is not None

    def _readable(self, request: web.Request) -> Repo:
        kind = request.match_info.get("kind") or (request.match_info["prefix"] or "models/").rstrip("/")
        repo = self.repos.get((kind, request.match_info["repo"]))
        if repo is None or (not self._authorised(request) and repo.private):
            raise _refusal(web.HTTPNotFound if repo is None else web.HTTPUnauthorized, "RepoNotFound")
        return repo

    def _writable(self, request: web.Request) -> Repo:
        if not self._authorised(request):
            raise _refusal(web.HTTPUnauthorized, "", "Invalid username or password.")
        return self._readable(request)

    def _at(self, request: web.Request) -> tuple[Repo, Commit]:
        repo = self._readable(request)
        commit = repo.find(_revision(request))
        if commit is None:
            raise _refusal(web.HTTPNotFound, "RevisionNotFound")
        return repo, commit

    # -- repositories ------------------------------------------------------------------------------------------------

    async def _create(self, request: web.Request) -> web.Response:
        if not self._authorised(request):
            raise _refusal(web.HTTPUnauthorized, "", "Invalid username or password.")
        asked = await request.json()
        owner = asked.get("organization") or self.user
        if owner != self.user:
            raise _refusal(web.HTTPForbidden, "", f"You don't have the rights to create a repo in {owner}")
        kind, name = f"{asked.get('type', 'model')}s", f"{owner}/{asked['name']}"
        answer = {"url": f"{self.url}/{PREFIXES[kind]}{name}", "name": name}
        if (kind, name) in self.repos:
            return web.json_response(answer | {"error": "You already created this repo"}, status=409)
        self.repos[kind, name] = Repo(kind, name, asked.get("visibility") == "private")
        return web.json_response(answer)

    async def _validate(self, request: web.Request) -> web.Response:
        block = re.match(r"---\n(.*?)\n---", (await request.json())["content"], re.DOTALL)
        errors = [] if block and isinstance(yaml.safe_load(block[1]), dict) else [{"message": "no metadata"}]
        return web.json_response({"errors": errors, "warnings": []}, status=400 if errors else 200)

    async def _whoami(self, request: web.Request) -> web.Response:
        if not self._authorised(request):
            raise _refusal(web.HTTPUnauthorized, "", "Invalid username or password.")
        return web.json_response({"type": "user", "name": self.user, "orgs": [], "auth": {"type": "access_token"}})

    async def _info(self, request: web.Request) -> web.Response:
        if "revision" in request.match_info:
            repo, commit = self._at(request)
        else:
            repo = self._readable(request)
            commit = repo.history["main"][-1]
        siblings = [{"rfilename": path, **_sizes(file)} for path, file in sorted(commit.files.items())]
        facts = {"id": repo.name, "sha": commit.oid, "private": repo.private, "tags": [], "lastModified": WHEN}
        return web.json_response({**facts, "siblings": siblings})

    async def _tree(self, request: web.Request) -> web.Response:
        _, commit = self._at(request)
        folder = request.match_info.get("path", "").rstrip("/")
        inside = {path: file for path, file in commit.files.items() if not folder or path.startswith(f"{folder}/")}
        if folder and not inside:
            raise _refusal(web.HTTPNotFound, "EntryNotFound")
        return web.json_response(_listing(inside, folder, request.query.get("recursive", "").lower() in ("true", "1")))

    async def _paths(self, request: web.Request) -> web.Response:
        _, commit = self._at(request)
        paths = (await request.post()).getall("paths") if "json" not in request.content_type else None
        paths = (await request.json())["paths"] if paths is None else paths
        entries = {entry["path"]: entry for entry in _listing(commit.files, "", recursive=True)}
        return web.json_response([entries[path] for path in paths if path in entries])

    async def _resolve(self, request: web.Request) -> web.Response:
        _, commit = self._at(request)
        file = commit.files.get(request.match_info["path"])
        headers = {"X-Repo-Commit": commit.oid, "Accept-Ranges": "bytes"}
        if file is None:
            raise _refusal(web.HTTPNotFound, "EntryNotFound", headers=headers)
        headers |= {"ETag": f'"{file.oid}"', "Content-Disposition": "inline"}
        if file.large:
            headers |= {"X-Linked-Size": str(len(file.content)), "X-Linked-Etag": f'"{file.sha256}"'}
        span = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("Range", ""))
        if span is None:
            return web.Response(body=file.content, headers=headers)
        start, end = int(span[1]), min(int(span[2] or len(file.content)), len(file.content) - 1)
        headers["Content-Range"] = f"bytes {start}-{end}/{len(file.content)}"
        return web.Response(body=file.content[start : end + 1], headers=headers, status=206)

    # -- uploads and commits -----------------------------------------------------------------------------------------

    async def _preupload(self, request: web.Request) -> web.Response:
        repo = self._writable(request)
        commit = repo.find(_revision(request))
        if commit is None:
            raise _refusal(web.HTTPNotFound, "RevisionNotFound")
        files = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith(LARGE) else "regular",
                "shouldIgnore": False,
                "oid": commit.files[file["path"]].oid if file["path"] in commit.files else None,
            }
            for file in (await request.json())["files"]
        ]
        return web.json_response({"files": files})

    async def _batch(self, request: web.Request) -> web.Response:
        self._writable(request)
        objects = [self._instructions(item["oid"], item["size"]) for item in (await request.json())["objects"]]
        return web.json_response({"transfer": "basic", "objects": objects})

    def _instructions(self, oid: str, size: int) -> dict[str, Any]:
        if oid in self.objects:
            return {"oid": oid, "size": size}
        href, verify = f"{self.url}/lfs/{oid}", {"href": f"{self.url}/lfs/{oid}/verify"}
        if self.part_size is None or size <= self.part_size:
            return {"oid": oid, "size": size, "actions": {"upload": {"href": href}, "verify": verify}}
        count = -(-size // self.part_size)
        header = {"chunk_size": str(self.part_size), **{f"{i + 1:05d}": f"{href}/{i + 1}" for i in range(count)}}
        upload = {"href": f"{href}/complete", "header": header}
        return {"oid": oid, "size": size, "actions": {"upload": upload, "verify": verify}}

    async def _upload(self, request: web.Request) -> web.Response:
        content, oid = await request.read(), request.match_info["oid"]
        if part := request.match_info.get("part"):
            self.parts[oid, int(part)] = content
        else:
            self._keep(oid, content)
        return web.Response(headers={"ETag": f'"{part or oid}"'})

    async def _complete(self, request: web.Request) -> web.Response:
        oid, numbers = request.match_info["oid"], [part["partNumber"] for part in (await request.json())["parts"]]
        self._keep(oid, b"".join(self.parts.pop((oid, number)) for number in sorted(numbers)))
        return web.json_response({})

    async def _verify(self, request: web.Request) -> web.Response:
        asked = await request.json()
        whole = len(self.objects.get(asked["oid"], b"")) == asked["size"]
        return web.json_response({}, status=200 if whole else 404)

    def _keep(self, oid: str, content: bytes) -> None:
        if File(content, large=True).sha256 != oid:
            raise _refusal(web.HTTPBadRequest, "", "the content has another hash")
        self.objects[oid] = content
        self.uploads.append(oid)

    async def _commit(self, request: web.Request) -> web.Response:
        repo, branch = self._writable(request), _revision(request)
        lines = [json.loads(line) for line in (await request.read()).splitlines()]
        header = next(line["value"] for line in lines if line["key"] == "header")
        if branch not in repo.history:
            raise _refusal(web.HTTPNotFound, "RevisionNotFound")
        head = repo.history[branch][-1]
        if header.get("parentCommit", head.oid) != head.oid:
            raise _refusal(
                web.HTTPPreconditionFailed, "", "A commit has happened since. Please refresh and try again."
            )
        try:
            files = apply(head.files, lines, self.objects)
        except KeyError as error:
            raise _refusal(web.HTTPBadRequest, "", f"LFS object or file {error} does not exist") from None
        commit = repo.commit(branch, files, header["summary"])
        url = f"{self.url}/{PREFIXES[repo.kind]}{repo.name}/commit/{commit.oid}"
        return web.json_response({"success": True, "commitOid": commit.oid, "commitUrl": url})

    # -- pull requests -----------------------------------------------------------------------------------------------

    async def _open(self, request: web.Request) -> web.Response:
        pull = self._writable(request).open_pull_request((await request.json())["title"])
        return web.json_response({"num": pull.number})

    async def _discussion(self, request: web.Request) -> web.Response:
        repo, pull = self._pull(request)
        facts = {"title": pull.title, "num": pull.number, "createdAt": WHEN, "status": pull.status, "events": []}
        place = {"repo": {"name": repo.name, "type": repo.kind[:-1]}, "author": {"name": self.user}}
        changes = {"isPullRequest": True, "changes": {"base": "refs/heads/main"}, "filesWithConflicts": []}
        return web.json_response({**facts, **place, **changes})

    async def _change(self, request: web.Request) -> web.Response:
        repo, pull = self._pull(request)
        if request.match_info["change"] == "status":
            pull.status = (await request.json())["status"]
        elif pull.status != "open":
            raise _refusal(web.HTTPBadRequest, "", f"A pull request that is {pull.status} cannot be merged")
        else:
            repo.merge(pull)
        event = {"id": "0" * 16, "type": "status-change", "createdAt": WHEN, "author": {"name": self.user}}
        return web.json_response({"newStatus": event | {"data": {"status": pull.status}}})

    def _pull(self, request: web.Request) -> tuple[Repo, PullRequest]:
        repo = self._writable(request)
        return repo, repo.pulls[int(request.match_info["number"]) - 1]


def _revision(request: web.Request) -> str:
    return unquote(request.match_info["revision"])


def _sizes(file: File) -> dict[str, Any]:
    facts = {"size": len(file.content), "oid": file.blob, "blobId": file.blob}
    large = {"oid": file.sha256, "sha256": file.sha256, "size": len(file.content), "pointerSize": 130}
    return facts | ({"lfs": large} if file.large else {})


def _listing(files: dict[str, File], folder: str, recursive: bool) -> list[dict[str, Any]]:
    """The entries of a folder, of all folders below it too where that is asked for."""
    entries: dict[str, dict[str, Any]] = {}
    start = len(folder) + 1 if folder else 0
    for path, file in sorted(files.items()):
        steps = path[start:].split("/")
        for depth in range(1, len(steps) if recursive else min(2, len(steps))):
            parent = path[:start] + "/".join(steps[:depth])
            entries[parent] = {"type": "directory", "path": parent, "oid": "0" * 40, "size": 0}
        if recursive or len(steps) == 1:
            entries[path] = {"type": "file", "path": path, **_sizes(file)}
    return list(entries.values())


def _refusal(kind: type[web.HTTPException], code: str, message: str = "", headers: Any = None) -> web.HTTPException:
    said = {"X-Error-Code": code} if code else {}
    return kind(headers={**(headers or {}), **said, "X-Error-Message": message}, text=json.dumps({"error": message}))
