"""Downloads that continue, and archives that stay in their folder."""

from __future__ import annotations

import errno
import io
import os
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from mdistiller import download
from mdistiller.commands import download_teachers, download_tiny_imagenet
from mdistiller.download import fetch, file_name, unpack
from mdistiller.errors import DataError

ROOT = Path(__file__).resolve().parents[1]
CONTENT = bytes(range(256)) * 50


class Server(ThreadingHTTPServer):
    """Serves ``files`` by path; the attributes say how well it behaves."""

    daemon_threads = True

    def __init__(self, files: dict[str, bytes]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files = files
        self.ranges = True  # honour the Range header
        self.send_length = True
        self.cut_after: list[int] = []  # for each of the next answers: bytes before it hangs up
        self.stall = 0.0  # seconds before it hangs up on a cut answer
        self.statuses: list[int] = []  # answered to the next requests instead of the file
        self.content_range: str | None = None  # replaces the true one
        self.asked: list[str | None] = []  # the Range header of each request

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.server_port}/{name}"


class _Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *args: object) -> None:
        """Nothing."""

    def do_GET(self) -> None:
        span = self.headers.get("Range")
        self.server.asked.append(span)
        content = self.server.files.get(self.path[1:])
        if self.server.statuses or content is None:
            self.send_error(self.server.statuses.pop(0) if self.server.statuses else 404)
            return
        start = 0
        if span and self.server.ranges:
            start = int(span.removeprefix("bytes=").rstrip("-"))
            if start >= len(content):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(content)}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.send_response(206)
            true_range = f"bytes {start}-{len(content) - 1}/{len(content)}"
            self.send_header("Content-Range", self.server.content_range or true_range)
        else:
            self.send_response(200)
        body = content[start:]
        if self.server.send_length:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if not self.server.cut_after:
            self.wfile.write(body)
            return
        self.wfile.write(body[: self.server.cut_after.pop(0)])
        self.wfile.flush()
        time.sleep(self.server.stall)


@contextmanager
def serve(files: dict[str, bytes]) -> Iterator[Server]:
    with Server(files) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def server(monkeypatch) -> Iterator[Server]:
    monkeypatch.setattr(download, "WAIT_SECONDS", 0.0)
    with serve({"a.tar": CONTENT}) as running:
        yield running


def one_line(caught: pytest.ExceptionInfo) -> str:
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_fetch_writes_the_file_and_nothing_else(server, tmp_path):
    path = fetch(server.url("a.tar"), tmp_path / "new" / "a.tar")
    assert path.read_bytes() == CONTENT
    assert [p.name for p in path.parent.iterdir()] == ["a.tar"]
    assert server.asked == [None]


def test_fetch_leaves_an_existing_file_alone(server, tmp_path):
    (tmp_path / "a.tar").write_bytes(b"mine")
    fetch(server.url("a.tar"), tmp_path / "a.tar")
    assert (tmp_path / "a.tar").read_bytes() == b"mine"
    assert server.asked == []


def test_fetch_continues_an_earlier_part(server, tmp_path):
    (tmp_path / "a.tar.part").write_bytes(CONTENT[:1000])
    fetch(server.url("a.tar"), tmp_path / "a.tar")
    assert (tmp_path / "a.tar").read_bytes() == CONTENT
    assert server.asked == ["bytes=1000-"]
    assert not (tmp_path / "a.tar.part").exists()


def test_fetch_continues_after_connections_that_broke(server, tmp_path):
    # More breaks than attempts: each brought something, so none counts as a failure in a row.
    server.cut_after = [700, 50, 1, 2000, 3]
    fetch(server.url("a.tar"), tmp_path / "a.tar")
    assert (tmp_path / "a.tar").read_bytes() == CONTENT
    assert server.asked == [None] + [f"bytes={n}-" for n in (700, 750, 751, 2751, 2754)]


def test_fetch_continues_after_a_server_that_fell_silent(server, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "_TIMEOUT_SECONDS", 0.1)
    server.cut_after, server.stall = [700], 0.5
    fetch(server.url("a.tar"), tmp_path / "a.tar")
    assert (tmp_path / "a.tar").read_bytes() == CONTENT
    assert server.asked == [None, "bytes=700-"]


def test_fetch_restarts_where_the_server_ignores_the_range(server, tmp_path):
    server.ranges = False
    (tmp_path / "a.tar.part").write_bytes(b"x" * 1000)
    fetch(server.url("a.tar"), tmp_path / "a.tar")
    assert (tmp_path / "a.tar").read_bytes() == CONTENT
    assert server.asked == ["bytes=1000-"]


def test_fetch_takes_a_part_that_was_complete(server, tmp_path):
    (tmp_path / "a.tar.part").write_bytes(CONTENT)
    fetch(server.url("a.tar"), tmp_path / "a.tar")
    assert (tmp_path / "a.tar").read_bytes() == CONTENT
    assert len(server.asked) == 1


def test_fetch_discards_a_part_longer_than_the_file(server, tmp_path):
    (tmp_path / "a.tar.part").write_bytes(CONTENT + b"more")
    fetch(server.url("a.tar"), tmp_path / "a.tar")
    assert (tmp_path / "a.tar").read_bytes() == CONTENT


@pytest.mark.parametrize("wrong", ["bytes 7-99/12800", "bytes a-b/c", "12"])
def test_fetch_does_not_join_parts_that_do_not_fit(server, tmp_path, wrong):
    server.content_range = wrong
    (tmp_path / "a.tar.part").write_bytes(CONTENT[:1000])
    fetch(server.url("a.tar"), tmp_path / "a.tar")
    assert (tmp_path / "a.tar").read_bytes() == CONTENT
    assert server.asked == ["bytes=1000-", None]


def test_fetch_accepts_an_unknown_length(server, tmp_path):
    server.send_length = False
    assert fetch(server.url("a.tar"), tmp_path / "a.tar").read_bytes() == CONTENT


def test_fetch_accepts_an_empty_file(server, tmp_path):
    server.files["empty"] = b""
    assert fetch(server.url("empty"), tmp_path / "empty").read_bytes() == b""


def test_truncated_body_is_an_error_and_keeps_the_part(server, tmp_path):
    server.ranges = False
    server.cut_after = [500] * download.ATTEMPTS
    with pytest.raises(DataError, match="500 of 12800 bytes.*a.tar.part is kept") as caught:
        fetch(server.url("a.tar"), tmp_path / "a.tar")
    one_line(caught)
    assert not (tmp_path / "a.tar").exists()
    assert (tmp_path / "a.tar.part").read_bytes() == CONTENT[:500]


def test_missing_file_is_not_retried(server, tmp_path):
    with pytest.raises(DataError, match="404") as caught:
        fetch(server.url("b.tar"), tmp_path / "b.tar")
    assert server.url("b.tar") in one_line(caught)
    assert len(server.asked) == 1
    assert list(tmp_path.iterdir()) == []


def test_overloaded_server_is_asked_again(server, tmp_path):
    server.statuses = [503, 429]
    assert fetch(server.url("a.tar"), tmp_path / "a.tar").read_bytes() == CONTENT


def test_server_that_stays_broken_is_an_error(server, tmp_path):
    server.statuses = [500] * 9
    with pytest.raises(DataError, match="3 times in a row.*500") as caught:
        fetch(server.url("a.tar"), tmp_path / "a.tar")
    assert "kept" not in one_line(caught)
    assert len(server.asked) == download.ATTEMPTS


def test_no_server_is_an_error(server, tmp_path):
    url = server.url("a.tar")
    server.shutdown()
    server.server_close()
    with pytest.raises(DataError, match="refused") as caught:
        fetch(url, tmp_path / "a.tar")
    one_line(caught)


def test_retries_wait_longer_each_time(server, tmp_path, monkeypatch):
    waits: list[float] = []
    monkeypatch.setattr(download, "WAIT_SECONDS", 1.0)
    monkeypatch.setattr(download.time, "sleep", waits.append)
    server.statuses = [500, 500]
    fetch(server.url("a.tar"), tmp_path / "a.tar")
    assert waits == [1.0, 2.0]


def test_interrupt_keeps_the_part_and_the_next_call_continues(server, tmp_path, monkeypatch):
    chunks = iter([CONTENT[:300]])

    def read_then_interrupt(response):
        for chunk in chunks:
            return chunk
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(download, "_read", read_then_interrupt)
        with pytest.raises(KeyboardInterrupt):
            fetch(server.url("a.tar"), tmp_path / "a.tar")
    assert (tmp_path / "a.tar.part").read_bytes() == CONTENT[:300]
    fetch(server.url("a.tar"), tmp_path / "a.tar")
    assert (tmp_path / "a.tar").read_bytes() == CONTENT
    assert server.asked == [None, "bytes=300-"]


def test_of_two_that_want_a_file_one_fetches_it(server, tmp_path, capsys):
    server.files["a.tar"], server.cut_after, server.stall = CONTENT, [1000], 0.3
    with ThreadPoolExecutor(4) as pool:
        paths = list(
            pool.map(lambda _: fetch(server.url("a.tar"), tmp_path / "a.tar", False), range(4))
        )
    assert {p.read_bytes() for p in paths} == {CONTENT}
    assert len(server.asked) == 2  # the second goes on where the first was cut
    assert [p.name for p in tmp_path.iterdir()] == ["a.tar"]
    assert "waiting for another process" in capsys.readouterr().out


def test_a_waiting_process_goes_on_where_the_first_one_failed(tmp_path):
    made = []

    def make(number: int) -> None:
        with download.exclusive(tmp_path / "x"):
            if not made:
                made.append(number)
                time.sleep(0.1)
                raise DataError("no")
            made.append(number)

    with ThreadPoolExecutor(3) as pool:
        tasks = [pool.submit(make, number) for number in range(3)]
    assert sum(isinstance(task.exception(), DataError) for task in tasks) == 1
    assert sorted(made) == [0, 1, 2]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.ENOLCK])
def test_a_file_system_without_locks_is_no_obstacle(server, tmp_path, monkeypatch, code):
    def refuse(self, **options) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(download.FileLock, "acquire", refuse)
    with pytest.warns(UserWarning, match="has no locks"):
        assert fetch(server.url("a.tar"), tmp_path / "a.tar").read_bytes() == CONTENT
    assert [p.name for p in tmp_path.iterdir()] == ["a.tar"]


def test_folder_that_cannot_be_made_is_an_error(server, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DataError, match="cannot be created") as caught:
        fetch(server.url("a.tar"), tmp_path / "file" / "a.tar")
    one_line(caught)


def test_file_that_cannot_be_written_is_an_error(server, tmp_path):
    (tmp_path / "a.tar.part").mkdir()
    with pytest.raises(DataError, match="a.tar.part: cannot be written") as caught:
        fetch(server.url("a.tar"), tmp_path / "a.tar", progress=False)
    one_line(caught)


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://x/y", "a.tar"])
def test_only_http_is_fetched(tmp_path, url):
    with pytest.raises(DataError, match="http"):
        fetch(url, tmp_path / "x")


def test_file_name_of_an_address():
    assert file_name("https://x.org/a/b.tar?download=1#top") == "b.tar"
    assert file_name("https://x.org/") == "download"


def tar_bytes(members: dict[str, bytes], mode: str = "w", **kinds: tarfile.TarInfo) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
        for info in kinds.values():
            tar.addfile(info)
    return buffer.getvalue()


def zip_bytes(members: dict[str, bytes], symlink: str | None = None) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
        if symlink:
            info = zipfile.ZipInfo(symlink)
            info.external_attr = 0o120777 << 16
            archive.writestr(info, "/etc/passwd")
    return buffer.getvalue()


def put(folder: Path, content: bytes, name: str = "archive") -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


def tree(folder: Path) -> dict[str, bytes]:
    files = (p for p in folder.rglob("*") if p.is_file())
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in files}


MEMBERS = {"set/a.txt": b"a", "set/deep/b.bin": b"b" * 5000, "top": b""}


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
def test_unpack_tar(tmp_path, mode):
    unpack(put(tmp_path, tar_bytes(MEMBERS, mode)), tmp_path / "out" / "put")
    assert tree(tmp_path / "out" / "put") == MEMBERS
    assert sorted(p.name for p in (tmp_path / "out" / "put").iterdir()) == ["set", "top"]


def test_unpack_zip(tmp_path):
    unpack(put(tmp_path, zip_bytes(MEMBERS)), tmp_path / "out")
    assert tree(tmp_path / "out") == MEMBERS


def test_tar_that_ends_with_a_zip_is_a_tar(tmp_path):
    # PyTorch checkpoints are zip files; zipfile finds one at the end of a short tar.
    archive = put(tmp_path, tar_bytes({"ckpt.pth": zip_bytes({"data.pkl": b"1"})}))
    assert zipfile.is_zipfile(archive)
    unpack(archive, tmp_path / "out")
    assert list(tree(tmp_path / "out")) == ["ckpt.pth"]


def test_unpack_merges_with_what_is_there(tmp_path):
    out = tmp_path / "out"
    (out / "set" / "deep").mkdir(parents=True)
    (out / "set" / "a.txt").write_bytes(b"old")
    (out / "set" / "mine").write_bytes(b"mine")
    unpack(put(tmp_path, tar_bytes(MEMBERS)), out)
    assert tree(out) == {**MEMBERS, "set/mine": b"mine"}


def special(kind: bytes, name: str, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


@pytest.mark.parametrize(
    "content",
    [
        tar_bytes({"ok": b"1", "../evil": b"1"}),
        tar_bytes({"ok": b"1", "set/../../evil": b"1"}),
        tar_bytes({"ok": b"1", "/tmp/evil": b"1"}),
        tar_bytes({"ok": b"1", "C:\\evil": b"1"}),
        tar_bytes({"ok": b"1", "..\\evil": b"1"}),
        tar_bytes({"ok": b"1"}, x=special(tarfile.SYMTYPE, "evil", "/etc")),
        tar_bytes({"ok": b"1"}, x=special(tarfile.SYMTYPE, "evil", "ok")),
        tar_bytes({"ok": b"1"}, x=special(tarfile.LNKTYPE, "evil", "ok")),
        tar_bytes({"ok": b"1"}, x=special(tarfile.CHRTYPE, "evil")),
        tar_bytes({"ok": b"1"}, x=special(tarfile.FIFOTYPE, "evil")),
        zip_bytes({"ok": b"1", "../evil": b"1"}),
        zip_bytes({"ok": b"1", "/evil": b"1"}),
        zip_bytes({"ok": b"1"}, symlink="evil"),
    ],
    # Without the content: zip writes the time into it, and test processes must agree on names.
    ids=[
        *("tar up", "tar in and up", "tar root", "tar drive", "tar backslash"),
        *("link out", "link", "hard link", "device", "pipe", "zip up", "zip root", "zip link"),
    ],
)
def test_dangerous_members_are_refused_before_anything_is_written(tmp_path, content):
    out = tmp_path / "a" / "b"
    archive = put(tmp_path, content)
    with pytest.raises(DataError, match="refused.*evil") as caught:
        unpack(archive, out)
    one_line(caught)
    assert tree(tmp_path) == {"archive": content}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no archive",
        tar_bytes(MEMBERS)[:3000],
        tar_bytes(MEMBERS, "w:gz")[:-60],
        tar_bytes(MEMBERS, "w:xz")[:-60],
        tar_bytes(MEMBERS, "w:bz2")[:-60],
        zip_bytes(MEMBERS)[:-10],
        zip_bytes({"a": b"content"}).replace(b"content", b"CONTENT"),
    ],
    # Not the bytes, which hold the time: the workers of one test run must agree on the names.
    ids=["empty", "no archive", "tar", "tar.gz", "tar.xz", "tar.bz2", "zip", "zip content"],
)
def test_damaged_archives_are_refused(tmp_path, content):
    archive = put(tmp_path, content)
    with pytest.raises(DataError, match="archive: .*fetch it again") as caught:
        unpack(archive, tmp_path / "out")
    one_line(caught)
    assert list(tree(tmp_path)) == ["archive"]


def test_missing_archive_is_an_error(tmp_path):
    with pytest.raises(DataError, match="cannot be read"):
        unpack(tmp_path / "none.tar", tmp_path)


def test_file_in_the_way_of_a_folder_is_an_error(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "set").write_bytes(b"mine")
    with pytest.raises(DataError, match="cannot be unpacked") as caught:
        unpack(put(tmp_path, tar_bytes({"set/a": b"1"})), out)
    one_line(caught)
    assert tree(out) == {"set": b"mine"}


def run_tool(tool: str, *arguments: str, cwd: Path) -> subprocess.CompletedProcess:
    # torch 2.6 leaves a temporary folder of its own to the interpreter's end.
    warn = ("-W", "error", "-W", "ignore:Implicitly cleaning up:ResourceWarning")
    command = [sys.executable, *warn, str(ROOT / "tools" / f"{tool}.py"), *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=120)


def test_teachers_are_fetched_unpacked_and_the_archive_removed(server, tmp_path):
    name = "cifar_teachers/resnet56_vanilla/ckpt_epoch_240.pth"
    server.files["cifar_teachers.tar"] = tar_bytes({name: b"weights"})
    url = server.url("cifar_teachers.tar")
    done = run_tool("download_teachers", "--url", url, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert tree(tmp_path) == {f"download_ckpts/{name}": b"weights"}
    arguments = ("--url", url, "--dest", "other", "--keep-archive")
    assert run_tool("download_teachers", *arguments, cwd=tmp_path).returncode == 0
    assert set(tree(tmp_path / "other")) == {name, "cifar_teachers.tar"}


def test_failing_tool_says_why_in_one_line(server, tmp_path):
    done = run_tool("download_teachers", "--url", server.url("none.tar"), cwd=tmp_path)
    assert done.returncode == DataError.exit_code
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert "404" in done.stderr


def test_tool_help_shows_an_example(tmp_path):
    done = run_tool("download_teachers", "--help", cwd=tmp_path)
    assert done.returncode == 0
    assert "example: python tools/download_teachers.py" in done.stdout


def tiny_archive() -> bytes:
    names = ("n01", "n02")
    members = {f"train/{c}/images/{c}_0.JPEG": b"x" for c in names}
    members |= {f"val/images/val_{i}.JPEG": b"%d" % i for i in range(2)}
    lines = [f"val_{i}.JPEG\t{c}\t0\t0\t1\t1\n" for i, c in enumerate(names)]
    members["val/val_annotations.txt"] = "".join(lines).encode()
    return zip_bytes({f"tiny-imagenet-200/{k}": v for k, v in members.items()})


def fetch_tiny(server, folder: Path) -> None:
    download_tiny_imagenet._download(server.url("tiny.zip"), folder, keep_archive=False)


def assert_tiny(folder: Path) -> None:
    val = tree(folder / "tiny-imagenet-200" / "val")
    assert val.pop("val_annotations.txt")
    assert val == {"n01/val_0.JPEG": b"0", "n02/val_1.JPEG": b"1"}
    assert [p.name for p in folder.iterdir()] == ["tiny-imagenet-200"]


def test_tiny_imagenet_is_fetched_and_sorted(server, tmp_path):
    server.files["tiny.zip"] = tiny_archive()
    for _ in range(2):  # the second time there is nothing left to do
        fetch_tiny(server, tmp_path / "data")
        assert_tiny(tmp_path / "data")
    assert len(server.asked) == 1


def test_tools_that_want_the_same_at_once_all_succeed(server, tmp_path):
    server.files["tiny.zip"], server.cut_after, server.stall = tiny_archive(), [100], 0.3
    server.files["t.tar"] = tar_bytes({"folder/weights": b"weights"})
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda _: fetch_tiny(server, tmp_path / "data"), range(3)))
    assert_tiny(tmp_path / "data")
    assert len(server.asked) == 2  # two parts of one download
    arguments = server.url("t.tar"), tmp_path / "t", False
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda _: download_teachers._download(*arguments), range(3)))
    assert tree(tmp_path / "t") == {"folder/weights": b"weights"}


def test_wrong_archive_for_tiny_imagenet_is_an_error(server, tmp_path):
    server.files["tiny.zip"] = zip_bytes({"other/file": b""})
    with pytest.raises(DataError, match="no folder tiny-imagenet-200"):
        fetch_tiny(server, tmp_path)
