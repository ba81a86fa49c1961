"""What is written is whole or absent; what is damaged is named; what is locked is locked."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import random
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vidi import storage
from vidi.errors import DamagedError, InUseError, StorageError, UsageError
from vidi.storage import LineLog, Lock, NewerFormatError

FILES = {
    "model.safetensors": b"weights" * 300,
    "optimizer.safetensors": b"momentum" * 200,
    "empty.bin": b"",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "folder"
    storage.write_folder(path, FILES)
    return path


def names_in(path: Path) -> list[str]:
    return sorted(entry.name for entry in path.iterdir())


# ---- Files ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", [b"", b"text", bytes(range(256)) * 5000], ids=len)
def test_a_file_is_read_as_it_was_written_and_nothing_stays_beside_it(
    data: bytes, tmp_path: Path
) -> None:
    path = tmp_path / "file"
    storage.write_file(path, b"earlier")
    storage.write_file(path, memoryview(bytearray(data)))
    assert storage.read_file(path) == data
    assert names_in(tmp_path) == ["file"]


def test_a_file_may_have_the_longest_name_there_is(tmp_path: Path) -> None:
    path = tmp_path / ("n" * 255)
    storage.write_file(path, b"data")
    assert storage.read_file(path) == b"data"


def test_writing_over_a_symbolic_link_replaces_it_and_spares_what_it_points_to(
    tmp_path: Path,
) -> None:
    precious = tmp_path / "precious"
    precious.write_bytes(b"precious")
    (tmp_path / "link").symlink_to(precious)
    storage.write_file(tmp_path / "link", b"ours")
    assert precious.read_bytes() == b"precious"
    assert not (tmp_path / "link").is_symlink()


def test_a_link_a_pipe_a_folder_and_a_giant_are_not_read(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"12345")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
    for name, words in [
        ("link", "symbolic link"),
        ("pipe", "not a regular file"),
        ("socket", "not a regular file"),
        (".", "not a regular file|directory"),
        ("nothing", "is missing"),
    ]:
        with pytest.raises(DamagedError, match=words):
            storage.read_file(tmp_path / name)
    with pytest.raises(DamagedError, match="has 5 bytes; at most 4"):
        storage.read_file(tmp_path / "file", limit_bytes=4)


@pytest.mark.parametrize("number", [*storage._WORDS, errno.ENXIO])
def test_every_error_of_a_disk_names_the_path_and_a_way_out(number: int, tmp_path: Path) -> None:
    path = tmp_path / "a\nb"
    with (
        pytest.raises(StorageError, match=r"cannot write .*a\\nb: \w+") as raised,
        storage.explained("cannot write", path),
    ):
        raise OSError(number, os.strerror(number))
    assert raised.value.fix
    assert raised.value.exit_code == 74
    assert "\n" not in raised.value.message


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="gone"):
        storage.write_file(tmp_path / "nowhere" / "file", b"")


def test_folders_are_made_with_those_above_and_a_file_in_the_way_is_an_error(
    tmp_path: Path,
) -> None:
    storage.make_folder(tmp_path / "a" / "b" / "c", mode=0o700)
    storage.make_folder(tmp_path / "a" / "b" / "c")
    assert (tmp_path / "a" / "b" / "c").stat().st_mode & 0o777 == 0o700
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(StorageError, match="cannot make the folder"):
            storage.make_folder(path)


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("plain name", "plain name"),
        ("花", "花"),
        ("a\nb\x1b[31m", r"a\nb\x1b[31m"),
        (os.fsdecode(b"caf\xe9"), r"caf\udce9"),
        ("right\u202eleft", r"right\u202eleft"),
    ],
)
def test_a_path_is_shown_on_one_printable_line(path: str, text: str) -> None:
    assert storage.shown(path) == text
    assert storage.shown(path).isprintable()


# ---- Folders with a manifest ---------------------------------------------------------------------


def test_a_folder_is_read_as_it_was_written(folder: Path) -> None:
    manifest = storage.verify_folder(folder)
    assert {name: storage.read_member(folder, name, manifest) for name in FILES} == FILES
    assert names_in(folder.parent) == ["folder"]


def test_a_folder_takes_the_place_of_an_earlier_one(folder: Path) -> None:
    storage.write_folder(folder, {"only": b"new"})
    assert names_in(folder) == ["manifest.json", "only"]
    assert names_in(folder.parent) == ["folder"]
    storage.verify_folder(folder)


@pytest.mark.parametrize("name", ["manifest.json", "a/b", "..", "", ".hidden", "a/", "a\0", "a\n"])
def test_names_that_could_leave_the_folder_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be the name of a file"):
        storage.write_folder(tmp_path / "folder", {name: b""})
    assert names_in(tmp_path) == []


def test_every_kind_of_damage_is_named_with_its_file(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"cut")
    (folder / "optimizer.safetensors").write_bytes(b"Momentum" + b"momentum" * 199)
    (folder / "empty.bin").unlink()
    (folder / "extra").touch()
    (folder / "sub").mkdir()
    with pytest.raises(DamagedError) as raised:
        storage.verify_folder(folder)
    for words in (
        "model.safetensors has 3 bytes instead of 2100",
        "optimizer.safetensors has changed (other SHA-256)",
        "empty.bin is missing",
        "extra is not in the manifest",
        "sub is not in the manifest",
    ):
        assert words in raised.value.message


@pytest.mark.parametrize("name", [*FILES, "manifest.json"])
def test_a_symbolic_link_is_damage_even_where_it_points_to_the_same_bytes(
    name: str, folder: Path
) -> None:
    elsewhere = folder.parent / "elsewhere"
    (folder / name).rename(elsewhere)
    (folder / name).symlink_to(elsewhere)
    with pytest.raises(DamagedError, match="symbolic link"):
        storage.verify_folder(folder)


def test_a_pipe_in_place_of_a_file_does_not_keep_us_waiting(folder: Path) -> None:
    (folder / "empty.bin").unlink()
    os.mkfifo(folder / "empty.bin")
    with pytest.raises(DamagedError, match=r"empty.bin is not a regular file"):
        storage.verify_folder(folder)


def test_a_link_to_a_folder_and_a_file_are_no_folder(folder: Path) -> None:
    link = folder.parent / "link"
    link.symlink_to(folder)
    for path in (link, folder / "empty.bin"):
        with pytest.raises(DamagedError, match="not a folder"):
            storage.verify_folder(path)


def test_any_flipped_bit_is_found(folder: Path) -> None:
    rng = random.Random(0)
    whole = {path: path.read_bytes() for path in folder.iterdir()}
    places = [(path, at) for path, data in whole.items() for at in range(len(data))]
    manifest = [place for place in places if place[0].name == "manifest.json"]
    num_found = 0
    for path, at in [*rng.sample(places, 1000), *manifest]:
        damaged = bytearray(whole[path])
        damaged[at] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        with pytest.raises(DamagedError, match=r"damaged|changed|missing") as raised:
            storage.verify_folder(folder)
        assert path.name in raised.value.message
        num_found += 1
        path.write_bytes(whole[path])
    assert num_found == 1000 + len(manifest) > 1400
    storage.verify_folder(folder)


def test_any_cut_and_any_addition_is_found(folder: Path) -> None:
    num_found = 0
    for path in sorted(folder.iterdir()):
        whole = path.read_bytes()
        cuts = range(len(whole)) if path.name == "manifest.json" else range(0, len(whole), 64)
        for damaged in (*(whole[:at] for at in cuts), whole + b"\0", whole + b"\n", whole * 2):
            if damaged != whole:
                path.write_bytes(damaged)
                with pytest.raises(DamagedError, match=path.name.replace(".", r"\.")):
                    storage.verify_folder(folder)
                num_found += 1
        path.write_bytes(whole)
    assert num_found > 500


def test_one_damaged_byte_of_a_large_file_is_found(tmp_path: Path) -> None:
    data = bytearray(random.Random(0).randbytes(6 << 20))
    storage.write_folder(tmp_path / "folder", {"a": data, "b": b"small"})
    storage.verify_folder(tmp_path / "folder")
    data[-1] ^= 1
    (tmp_path / "folder" / "a").write_bytes(data)
    with pytest.raises(DamagedError, match="a has changed"):
        storage.verify_folder(tmp_path / "folder")


def test_a_file_that_changed_after_it_was_verified_is_not_handed_out(folder: Path) -> None:
    manifest = storage.verify_folder(folder)
    (folder / "model.safetensors").write_bytes(b"Weights" + b"weights" * 299)
    with pytest.raises(DamagedError, match=r"model.safetensors has changed"):
        storage.read_member(folder, "model.safetensors", manifest)


def test_a_file_that_the_manifest_does_not_have_is_not_handed_out(folder: Path) -> None:
    manifest = storage.verify_folder(folder)
    with pytest.raises(UsageError, match=r"has no file '\.\./secret'"):
        storage.read_member(folder, "../secret", manifest)


def rewrite_manifest(folder: Path, **changes: object) -> None:
    """As somebody would who knows the rules."""
    path = folder / "manifest.json"
    record = json.loads(path.read_bytes()) | changes
    del record["sha256"]
    record["sha256"] = hashlib.sha256(storage.dump_json(record, indent=1)).hexdigest()
    path.write_bytes(storage.dump_json(record, indent=1))


def test_a_manifest_edited_to_match_passes_for_it_tells_damage_not_tampering(
    folder: Path,
) -> None:
    (folder / "empty.bin").write_bytes(b"x")
    files = json.loads((folder / "manifest.json").read_bytes())["files"]
    files["empty.bin"] = {"bytes": 1, "sha256": hashlib.sha256(b"x").hexdigest()}
    rewrite_manifest(folder, files=files)
    storage.verify_folder(folder)


def test_a_manifest_of_a_later_format_is_refused_with_both_numbers(folder: Path) -> None:
    rewrite_manifest(folder, format=2, surprise="yes")
    with pytest.raises(NewerFormatError, match="is of format 2; this vidi reads format 1"):
        storage.verify_folder(folder)


@pytest.mark.parametrize(
    "files", [None, [], {"a": None}, {"a": {}}, {"a": {"bytes": "x", "sha256": ""}}, "a"]
)
def test_a_manifest_with_other_contents_is_damaged(files: object, folder: Path) -> None:
    rewrite_manifest(folder, files=files)
    with pytest.raises(DamagedError, match=r"manifest.json is damaged"):
        storage.verify_folder(folder)


def test_a_replacement_that_was_cut_off_in_the_middle_is_ended_by_the_next(
    folder: Path,
) -> None:
    folder.rename(folder.with_name("folder.old"))
    storage.write_folder(folder, {"second": b"2"})
    assert names_in(folder.parent) == ["folder"]
    storage.write_folder(folder.with_name("folder.old"), {"first": b"1"})
    storage.write_folder(folder, {"third": b"3"})
    assert names_in(folder.parent) == ["folder"]
    assert names_in(folder) == ["manifest.json", "third"]


def test_discarded_folders_are_gone_and_leftovers_are_tidied(folder: Path) -> None:
    above = folder.parent
    storage.write_folder(above / "second", FILES)
    storage.discard_folder([folder, above / "second"])
    (above / ".0123.tmp").mkdir()
    (above / ".0123.tmp" / "half").touch()
    (above / ".4567.tmp").symlink_to(above)
    (above / ".keep").touch()
    storage.remove_leftovers(above)
    assert names_in(above) == [".keep"]


# ---- JSON ----------------------------------------------------------------------------------------

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**130), 2**130)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters()),
    lambda values: st.lists(values, max_size=4) | st.dictionaries(st.text(), values, max_size=4),
    max_leaves=12,
)


@settings(deadline=None)
@given(json_values)
def test_json_comes_back_as_it_went_with_every_float_exact(value: object) -> None:
    for indent in (None, 1):
        data = storage.dump_json(value, indent=indent)
        back = storage.parse_json(data, "there")
        assert back == value
        assert storage.dump_json(back, indent=indent) == data
        assert data.isascii()


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"a": [1.0, float("nan")]}, r"a\[1\] is nan"),
        ({"a": {"b": float("inf")}}, r"a\.b is inf"),
        (float("-inf"), "the value is -inf"),
        ({1: 2}, "key 1 of the value is no string"),
        ({"a": {"b": {None: 2}}}, r"key None of a\.b is no string"),
        ({"a": {1, 2}}, "a is a set, which JSON does not have"),
        ({"a": b"bytes"}, "a is a bytes"),
    ],
)
def test_what_json_cannot_hold_is_refused_with_its_place(value: object, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        storage.dump_json(value)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"[NaN]",
        b"[-Infinity]",
        b'{"a": 1, "a": 2}',
        b'"\xff"',
        b"[" * 100_000,
        b"9" * 10_000,
        b"1 2",
        b"\x00",
    ],
    ids=lambda data: repr(data[:12]),
)
def test_what_is_no_json_is_damage_with_its_place(data: bytes) -> None:
    with pytest.raises(DamagedError, match="over there is damaged"):
        storage.parse_json(data, "over there")


# ---- Logs ----------------------------------------------------------------------------------------


def test_a_log_cut_at_any_byte_keeps_its_whole_lines_and_goes_on_after_them(
    tmp_path: Path,
) -> None:
    path = tmp_path / "log"
    log = LineLog(path)
    lines = ["first", "", "dritte Zeile: ä", "x" * 50, "last"]
    for line in lines:
        log.append(line)
    log.close()
    whole = path.read_bytes()
    for cut in range(len(whole) + 1):
        path.write_bytes(whole[:cut])
        kept = lines[: whole[:cut].count(b"\n")]
        assert LineLog(path).lines() == kept
        # A reader changes nothing.
        assert path.read_bytes() == whole[:cut]
        log = LineLog(path)
        assert log.offset == len("".join(f"{line}\n" for line in kept).encode())
        log.append("next")
        assert log.lines() == [*kept, "next"]
        log.close()
    assert cut == len(whole) > 70


@settings(max_examples=50, deadline=None)
@given(
    lines=st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\n")), max_size=20),
    data=st.data(),
)
def test_a_log_cut_back_to_an_offset_is_as_it_was_then(
    lines: list[str], data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    log = LineLog(tmp_path_factory.mktemp("log") / "log")
    offsets = [log.offset]
    for line in lines:
        log.append(line)
        offsets.append(log.offset)
    keep = data.draw(st.integers(0, len(lines)))
    log.truncate(offsets[keep])
    assert log.lines() == lines[:keep]
    assert log.offset == offsets[keep] == log.path.stat().st_size
    log.close()


def test_a_log_cannot_be_cut_back_to_where_no_line_ended(tmp_path: Path) -> None:
    log = LineLog(tmp_path / "log")
    log.append("one")
    with pytest.raises(DamagedError, match="has 4 bytes, but 9 were written"):
        log.truncate(9)
    with pytest.raises(DamagedError, match="no line ends at byte 2"):
        log.truncate(2)
    assert log.lines() == ["one"]
    log.close()


@pytest.mark.parametrize(("line", "words"), [("a\nb", "newline"), ("a\udce9", r"'\\udce9'")])
def test_what_is_no_line_of_text_is_refused(line: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=words):
        LineLog(tmp_path / "log").append(line)
    assert LineLog(tmp_path / "log").lines() == []


def test_threads_share_a_log_without_mixing_lines(tmp_path: Path) -> None:
    log = LineLog(tmp_path / "log")
    lines = [f"{thread} " * 50 for thread in range(4)]

    def write(line: str) -> None:
        for _ in range(200):
            log.append(line)
            log.sync()

    threads = [threading.Thread(target=write, args=(line,)) for line in lines]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(log.lines()) == sorted(lines * 200)
    log.close()


def test_a_log_is_not_written_through_a_symbolic_link(tmp_path: Path) -> None:
    (tmp_path / "precious").write_bytes(b"precious\n")
    (tmp_path / "log").symlink_to(tmp_path / "precious")
    with pytest.raises(StorageError, match="symbolic link"):
        LineLog(tmp_path / "log").append("ours")
    assert (tmp_path / "precious").read_bytes() == b"precious\n"


# ---- Locks ---------------------------------------------------------------------------------------


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    """A process that is there and does nothing."""
    with subprocess.Popen(
        [sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE
    ) as child:
        yield child
        child.kill()


def hold(path: Path, **changes: object) -> dict[str, object]:
    """Writes a lock file as a process of ours would, with some of it changed."""
    lock = Lock(path)
    lock.acquire()
    record: dict[str, object] = json.loads(path.read_bytes()) | changes
    path.write_bytes(storage.dump_json(record))
    return record


def start_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])


def test_a_lock_is_held_until_it_is_released(tmp_path: Path) -> None:
    first, second = Lock(tmp_path / "lock"), Lock(tmp_path / "lock")
    first.acquire()
    with pytest.raises(InUseError, match=f"process {os.getpid()} on host") as raised:
        second.acquire()
    assert raised.value.exit_code == 5
    assert "this machine" in raised.value.message
    first.release()
    second.acquire()
    second.release()
    assert names_in(tmp_path) == []


def test_a_lock_of_a_living_process_is_respected_and_of_a_dead_one_taken_over(
    tmp_path: Path, sleeper: subprocess.Popen[bytes]
) -> None:
    path = tmp_path / "lock"
    hold(path, pid=sleeper.pid, started=start_of(sleeper.pid))
    with pytest.raises(InUseError, match=f"process {sleeper.pid} on host"):
        Lock(path).acquire()
    os.kill(sleeper.pid, 9)
    os.waitid(os.P_PID, sleeper.pid, os.WEXITED | os.WNOWAIT)
    # It is a zombie now: dead, though its number is still taken.
    Lock(path).acquire()
    assert json.loads(path.read_bytes())["pid"] == os.getpid()


def test_a_lock_whose_number_belongs_to_another_process_by_now_is_taken_over(
    tmp_path: Path, sleeper: subprocess.Popen[bytes]
) -> None:
    hold(tmp_path / "lock", pid=sleeper.pid, started=start_of(sleeper.pid) - 1)
    Lock(tmp_path / "lock").acquire()


def test_a_lock_from_before_the_machine_was_started_again_is_taken_over(tmp_path: Path) -> None:
    hold(tmp_path / "lock", boot="another boot")
    Lock(tmp_path / "lock").acquire()


def test_a_lock_of_another_machine_is_respected_and_says_how_to_remove_it(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    hold(path, host="other.example", boot="another boot", pid=1)
    with pytest.raises(
        InUseError, match=r"process 1 on host other\.example \(on another"
    ) as raised:
        Lock(path).acquire()
    assert str(path) in raised.value.fix
    path.unlink()
    Lock(path).acquire()


@pytest.mark.parametrize("text", ["", "{", "null", '{"pid": "x"}', "\0" * 50, "[1]"])
def test_a_lock_file_that_was_cut_off_is_taken_over(text: str, tmp_path: Path) -> None:
    (tmp_path / "lock").write_text(text)
    lock = Lock(tmp_path / "lock")
    lock.acquire()
    lock.confirm()
    lock.release()


def test_only_one_of_many_takes_over_a_stale_lock(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    for _ in range(30):
        hold(path, boot="another boot")
        outcomes: list[bool] = []
        barrier = threading.Barrier(6)

        def race(barrier: threading.Barrier = barrier, outcomes: list[bool] = outcomes) -> None:
            lock = Lock(path)
            barrier.wait()
            try:
                lock.acquire()
            except InUseError:
                outcomes.append(False)
            else:
                outcomes.append(True)

        threads = [threading.Thread(target=race) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(outcomes) == [False] * 5 + [True]
        path.unlink()


def test_a_lock_that_its_holder_deletes_while_it_is_being_taken_is_not_taken_as_a_ghost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "lock"
    flock = fcntl.flock
    deleted: list[Path] = []

    def holder_leaves(descriptor: int, operation: int) -> None:
        if not deleted:
            path.unlink()
            deleted.append(path)
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", holder_leaves)
    Lock(path).acquire()
    assert deleted
    with pytest.raises(InUseError):
        Lock(path).acquire()


def test_a_lock_that_was_deleted_is_taken_again_unless_somebody_has_it(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    lock = Lock(path)
    lock.acquire()
    path.unlink()
    lock.confirm()
    assert json.loads(path.read_bytes())["pid"] == os.getpid()
    path.unlink()
    hold(path, host="other.example")
    with pytest.raises(InUseError, match=r"other\.example"):
        lock.confirm()
    lock.release()
    assert path.exists(), "it was the other's"


def test_a_forked_child_does_not_give_back_its_parents_lock(tmp_path: Path) -> None:
    program = """
import os, sys
from pathlib import Path
from vidi.storage import Lock
lock = Lock(Path(sys.argv[1]))
lock.acquire()
if os.fork() == 0:
    lock.release()
    os._exit(0)
os.wait()
assert Path(sys.argv[1]).exists()
lock.release()
assert not Path(sys.argv[1]).exists()
"""
    subprocess.run([sys.executable, "-c", program, tmp_path / "lock"], check=True, timeout=60)
