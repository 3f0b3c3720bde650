"""Checksums of files, whole and by blocks."""

import pytest
import xxhash

from vapo_verl.run_folder.checksums import cached_checksum, file_checksum

BLOCK = 2**14


@pytest.mark.parametrize("size", [0, 1, 3 * BLOCK - 1, 2**22, 2**22 + 5])
def test_a_whole_file_has_the_checksum_of_its_bytes(size, tmp_path):
    path, content = tmp_path / "file", bytes(i % 251 for i in range(size))
    path.write_bytes(content)
    assert file_checksum(path) == xxhash.xxh3_128_hexdigest(content)


def test_blocks_reach_from_the_first_byte_to_the_last_and_skip_what_is_between(tmp_path):
    path, content = tmp_path / "weights", bytearray(10 * BLOCK)
    checksums = set()
    for changed in (None, 0, BLOCK - 1, len(content) // 2, len(content) - 1):
        if changed is not None:
            content[changed] += 1
        path.write_bytes(content)
        checksums.add(file_checksum(path, num_blocks=3))
    assert len(checksums) == 5
    content[2 * BLOCK] += 1  # between the first block and the one in the middle
    path.write_bytes(content)
    assert file_checksum(path, num_blocks=3) in checksums


@pytest.mark.parametrize("size", [0, 5, 3 * BLOCK - 1])
def test_a_file_without_that_many_blocks_is_read_whole(size, tmp_path):
    path = tmp_path / "file"
    path.write_bytes(bytes(size))
    assert file_checksum(path, num_blocks=3) == file_checksum(path)


def test_a_file_is_read_again_once_it_changed(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"one")
    first = cached_checksum(path)
    path.write_bytes(b"other")
    assert cached_checksum(path) == file_checksum(path) != first
