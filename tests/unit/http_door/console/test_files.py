"""The console's files: what they are, how they are sent, and to whom."""

from __future__ import annotations

import hashlib
import json
import re
from importlib.resources import files

from loramux_server.config import Address
from loramux_server.http.console.files import STATIC, ConsoleFiles
from loramux_server.http.server import HttpServer

from ..conftest import Http
from ..test_door import Keys

MOST_BYTES = 300_000
VENDOR = STATIC / "vendor"
IMPORT = re.compile(r"""(?:\bfrom|\bimport)\s*\(?["']([^"']+)["']""")


async def test_the_page_is_open_to_everybody_and_holds_no_data(http: Http) -> None:
    http.access.authenticator = Keys()
    answer = await http.raw.get("/")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    policy = answer.headers["content-security-policy"].split("; ")
    for rule in ("default-src 'none'", "script-src 'self'", "connect-src 'self'", "frame-ancestors 'none'"):
        assert rule in policy
    assert "unsafe" not in answer.headers["content-security-policy"]
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "no-referrer"
    for link in re.findall(r'(?:href|src)="([^"]+)"', answer.text):
        assert (await http.raw.get(f"/{link}")).status_code == 200, link


async def test_browsers_keep_the_files_and_ask_whether_they_changed(http: Http) -> None:
    answer = await http.raw.get("/console/app.js")
    assert answer.headers["content-type"] == "text/javascript; charset=utf-8"
    assert answer.headers["cache-control"] == "no-cache"
    for known in (answer.headers["etag"], f'"old", W/{answer.headers["etag"]}'):
        again = await http.raw.get("/console/app.js", headers={"if-none-match": known})
        assert (again.status_code, again.content) == (304, b"")
    head = await http.raw.head("/console/app.js")
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-length"] == str(len(answer.content))
    assert (await http.raw.post("/console/app.js")).status_code == 405


async def test_nothing_else_is_served(http: Http) -> None:
    for path in ("/console", "/console/", "/console/index.html", "/console/README.md", "/console/../files.py"):
        assert (await http.raw.get(path)).status_code == 404, path
    for path in ("/console/%2e%2e/files.py", "/console//app.js", "/console/app.js/", "/console/vendor"):
        assert (await http.raw.get(path)).status_code == 404, path


async def test_it_can_be_switched_off(http: Http) -> None:
    server = HttpServer(http.availability, http.server.calls, Address("127.0.0.1", 0), console=False)
    await server.start()
    try:
        for path in ("/", "/console/app.js"):
            answer = await http.raw.get(f"http://{server.address}{path}")
            assert answer.status_code == 404
    finally:
        await server.stop()


async def test_the_files_are_small_and_lie_in_the_package(http: Http) -> None:
    assert sum([len((await http.raw.get(path)).content) for path in ConsoleFiles()]) < MOST_BYTES
    assert files("loramux_server.http.console").joinpath("static", "index.html").is_file()


def test_what_comes_from_elsewhere_is_as_it_was_fetched() -> None:
    record = json.loads((VENDOR / "versions.json").read_text())
    found = {
        path.relative_to(VENDOR).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in VENDOR.rglob("*")
        if path.is_file() and path.name != "versions.json"
    }
    assert found == record["files"]
    assert sum(path.endswith("/LICENSE") for path in found) == 2


def test_every_import_is_a_file_of_the_console() -> None:
    for module in STATIC.rglob("*.js"):
        for name in IMPORT.findall(module.read_text()):
            if name.startswith(("./", "../")):
                assert (module.parent / name).resolve().is_file(), f"{module} imports {name}"
            else:
                assert module.parent.name == "uplot", f"{module} imports {name}"


def test_no_module_makes_markup_of_texts() -> None:
    """The policy refuses it in browsers; this says so before."""
    ways = re.compile(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|unsafeHTML|\beval\(|new Function|style=")
    for module in STATIC.rglob("*.js"):
        if VENDOR not in module.parents:
            assert not ways.search(module.read_text()), module
