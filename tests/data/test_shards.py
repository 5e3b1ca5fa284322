"""Shards are read in order, from disk and over HTTP; whatever is wrong in one is named."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from data import made

from unclip_hub.data.captioned import BrokenSample
from unclip_hub.data.shards import Shards, find_shards


def outcome(found) -> tuple[str, str]:
    return (found.kind if isinstance(found, BrokenSample) else found.captions[0], found.key)


def read(path, **options) -> list[tuple[str, str]]:
    return [outcome(found) for found in Shards((str(path),)).read(0, **options)]


def test_samples_come_in_order(tmp_path):
    (path,) = made.shards(tmp_path, [4])
    assert read(path) == [(f"picture {i}", f"part-00/000{i}") for i in range(4)]
    assert read(path, part=1, parts=3) == [("picture 1", "part-00/0001")]
    assert sorted(read(path, part=0, parts=3) + read(path, part=2, parts=3)) == [
        (f"picture {i}", f"part-00/000{i}") for i in (0, 2, 3)
    ]


def test_captions_in_json_folders_and_files_that_are_passed_over(tmp_path):
    image = made.encoded(made.picture(3))
    files = [
        ("readme", b"no suffix"),
        ("./sub/a.JPG", image),
        ("./sub/a.json", json.dumps({"width": 3, "caption": " from json "}).encode()),
        ("./sub/a.npy", b"passed over"),
        ("other/a.txt", "ä text".encode()),
        ("other/a.json", b"not looked at"),
        ("other/a.seg.png", b"passed over"),
        ("other/a.webp", image),
    ]
    assert read(made.shard(tmp_path / "x.tar", files)) == [("from json", "x/sub/a"), ("ä text", "x/other/a")]


def test_what_is_wrong_with_a_sample_is_named(tmp_path):
    image = made.encoded(made.picture(3))
    files = [
        ("a.png", image),  # its caption comes too late
        ("b.png", image),
        ("b.txt", b"whole"),
        ("a.txt", b"too late"),
        ("c.txt", b"no picture"),
        ("d.png", image),
        ("d.txt", b"  "),
        ("e.png", image),
        ("e.json", b"{"),
        ("f.png", image),
        ("f.json", b'{"alt": "x"}'),
        ("g.png", image),
        ("g.txt", b"\xe4"),
        ("h.png", image),
        ("h.jpg", image),
        ("h.txt", b"two pictures"),
        ("i.png", image),
        ("i.json", b'{"caption": 3}'),
    ]
    assert read(made.shard(tmp_path / "x.tar", files)) == [
        ("no caption", "x/a"),
        ("whole", "x/b"),
        ("duplicate key", "x/a"),
        ("no image", "x/c"),
        ("empty caption", "x/d"),
        ("broken caption", "x/e"),
        ("no caption", "x/f"),
        ("broken caption", "x/g"),
        ("duplicate key", "x/h"),
        ("broken caption", "x/i"),
    ]


@pytest.mark.parametrize("cut", ["in a file", "in a header", "between files", "header overwritten", "empty", "no tar"])
def test_broken_shards_are_an_error_not_an_end(cut, tmp_path):
    (path,) = made.shards(tmp_path, [4])
    content = path.read_bytes()
    third = content.index(b"0002.png")  # where its header starts
    broken = {
        "in a file": content[: third + 600],
        "in a header": content[: third + 100],
        "between files": content[:third],
        "header overwritten": content[:third] + b"\1" * 512 + content[third + 512 :],
        "empty": b"",
        "no tar": b"<html>" * 200,
    }[cut]
    path.write_bytes(broken)
    found = read(path)
    right = 0 if cut in ("empty", "no tar") else 2 if cut == "in a file" else 1
    assert found == [*((f"picture {i}", f"part-00/000{i}") for i in range(right)), ("broken shard", "part-00")]


def test_excluded_samples_are_passed_over(tmp_path):
    (path,) = made.shards(tmp_path, [4])
    shards = Shards((str(path),), frozenset({"part-00/0001"}))
    assert [found.key for found in shards.read(0)] == ["part-00/0000", "part-00/0002", "part-00/0003"]


def test_missing_shards_are_named_at_once(tmp_path):
    made.shards(tmp_path, [1, 1])
    with pytest.raises(ValueError, match=r"2 of 4 shards are missing: .*part-02\.tar, .*part-03\.tar"):
        Shards(find_shards(f"{tmp_path}/part-{{00..03}}.tar"))


def test_shards_of_one_name_are_refused(tmp_path):
    paths = [made.shard(tmp_path / sub / "x.tar", made.files_of(1)) for sub in ("a", "b")]
    with pytest.raises(ValueError, match="several shards are called x"):
        Shards(tuple(map(str, paths)))


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("a{0..2}.tar", ("a0.tar", "a1.tar", "a2.tar")),
        ("a{008..010}.tar", ("a008.tar", "a009.tar", "a010.tar")),
        ("{x,y}/{0..1}.tar", ("x/0.tar", "x/1.tar", "y/0.tar", "y/1.tar")),
        ("https://host/a-{0..1}.tar?key=1", ("https://host/a-0.tar?key=1", "https://host/a-1.tar?key=1")),
    ],
)
def test_patterns(pattern, expected):
    assert find_shards(pattern) == expected


@pytest.mark.parametrize("pattern", ["a{0..2.tar", "a}.tar", "a{}.tar", "a{1}.tar", "a{0..x}.tar", "a{2..1}.tar"])
def test_patterns_that_mean_nothing(pattern):
    with pytest.raises(ValueError, match="brace|expected"):
        find_shards(pattern)


def test_stars_are_looked_up(tmp_path):
    paths = made.shards(tmp_path, [1, 1])
    assert find_shards(f"{tmp_path}/*.tar") == tuple(map(str, paths))
    with pytest.raises(ValueError, match="no shard fits"):
        find_shards(f"{tmp_path}/*.tgz")


@pytest.fixture
def server(tmp_path, monkeypatch):
    """Serves tmp_path; ``lost`` is how many of the next answers break off half way."""
    monkeypatch.setattr("time.sleep", lambda _: None)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            path = tmp_path / self.path.lstrip("/")
            if not path.is_file():
                return self.send_error(404)
            content = path.read_bytes()
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            running.asked += 1
            if running.lost:
                running.lost -= 1
                content = content[: len(content) // 2]
            self.wfile.write(content)

        def log_message(self, *_):
            pass

    running = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    running.lost = running.asked = 0
    threading.Thread(target=running.serve_forever, daemon=True).start()
    yield running
    running.shutdown()
    running.server_close()


def test_shards_are_streamed_over_http_and_lost_connections_taken_up(server, tmp_path):
    made.shards(tmp_path, [9])
    address = f"http://127.0.0.1:{server.server_port}/part-00.tar"
    whole = [(f"picture {i}", f"part-00/000{i}") for i in range(9)]
    assert read(address) == whole and server.asked == 1
    server.lost = 2
    assert read(address) == whole and server.asked == 4
    server.lost = 1
    assert read(address, part=1, parts=2) == whole[1::2]
    server.lost = 100
    *some, last = read(address)
    assert some == whole[: len(some)] and 2 < len(some) < 9 and last == ("broken shard", "part-00")


def test_an_address_without_a_shard_is_an_error(server):
    address = f"http://127.0.0.1:{server.server_port}/gone.tar"
    (problem,) = Shards((address,)).read(0)
    assert isinstance(problem, BrokenSample) and "404" in str(problem) and address in str(problem)
